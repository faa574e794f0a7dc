"""A pool over TLS, whose processes are Redis users that may do only what `deploy/redis-users.acl` gives them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import redis
import trustme
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.redis.client import connect, connect_async, ledger_errors
from app.server_errors import LedgerUnavailableError, RateLimitError
from app.settings import Settings
from controller.admission.authentication import Caller
from controller.admission.rate_limit import RateLimit
from modelyard import Client
from tests import light_registry
from tests.conftest import WaitUntil
from tests.e2e.conftest import Pool, queues_in
from tests.light_registry import DOUBLED, MODEL, PAIR
from tests.redis_users import issue_certificates, shipped_users

pytestmark = pytest.mark.timeout(400)  # the first test here starts a whole pool
N_LARGE = 40_000  # samples that pass through Redis in pieces
USERS = ("controller", "worker", "flower", "operator")


@dataclass
class Guarded:
    """A Redis server that speaks TLS only and knows the users of the ACL file."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def password(self, user: str) -> str:
        return f"p@ss/word-of-{user}?"

    def password_file(self, user: str) -> Path:
        return self.folder / user

    def url(self, user: str) -> str:
        return f"rediss://{user}@localhost:{self.port}/0?ssl_ca_certs={self.folder}/ca.pem"

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(
            port=self.port,
            username=user,
            password=self.password(user),
            ssl=True,
            ssl_ca_certs=f"{self.folder}/ca.pem",
        )

    def variables(self, user: str) -> dict[str, str]:
        return {"REDIS_URL": self.url(user), "REDIS_PASSWORD_FILE": str(self.password_file(user))}


@pytest.fixture(scope="module")
def guarded(
    free_port: Callable[[], int], wait_until: WaitUntil, system_tool: Callable[[str, str], str]
) -> Iterator[Guarded]:
    server = system_tool("redis-server", "redis-server")  # that of the package of Valkey speaks no TLS
    with tempfile.TemporaryDirectory(prefix="yard-") as name:
        folder = Path(name)
        issue_certificates(folder)
        made = Guarded(free_port(), folder, subprocess.Popen(["true"]))
        made.process.wait()
        write_users(made)
        (folder / "redis.conf").write_text(
            f'port 0\ntls-port {made.port}\nbind 127.0.0.1\nsave ""\ntls-auth-clients no\n'
            f"tls-cert-file {folder}/own.pem\ntls-key-file {folder}/own.pem\ntls-ca-cert-file {folder}/ca.pem\n"
            f"aclfile {folder}/users.acl\ndir {folder}\n"
        )
        with (folder / "redis.log").open("wb") as log:
            made.process = subprocess.Popen([server, folder / "redis.conf"], stdout=log, cwd=folder)
        wait_until(lambda: answers(made), what="Redis answers")
        try:
            yield made
        finally:
            made.process.terminate()
            made.process.wait(10)


def write_users(server: Guarded) -> None:
    """Their file, and a file with the password of each."""
    for user in USERS:
        server.password_file(user).write_text(server.password(user) + "\n")
    (server.folder / "users.acl").write_text("\n".join([*shipped_users(server.password), ""]))


def answers(server: Guarded) -> bool:
    with server.client("operator") as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture
def guarded_pool(
    guarded: Guarded, light: Path, free_port: Callable[[], int], wait_until: WaitUntil
) -> Iterator[tuple[Pool, str]]:
    """A worker of each version and a controller, each as its own user of Redis."""
    pool = Pool(light, "", free_port, wait_until)
    try:
        for version in (1, 2):
            start_worker(pool, guarded, version)
        pool.environment = guarded.variables("controller") | {
            "MODELYARD_RATE_LIMIT": "100000/second",
            "MODELYARD_MAX_SAMPLES": str(N_LARGE),
        }
        url = pool.controller()
        pool.wait_for_workers(url, 2)
        pool.environment["URL"] = url
        yield pool, url
    finally:
        pool.close()


def start_worker(pool: Pool, guarded: Guarded, version: int) -> subprocess.Popen[bytes]:
    variables = light_registry.variables(pool.folder) | guarded.variables("worker")
    return pool.start(
        "workers",
        MODEL_VERSION=str(version),
        WORKER=str(version),
        MODELYARD_HEARTBEAT_S="0.5",
        **variables,
    )


def denied(guarded: Guarded) -> list[str]:
    """What Redis refused to anybody."""
    with guarded.client("operator") as client:
        return [f"{each['username']}: {each['reason']} {each['object']}" for each in client.acl_log()]


def test_a_pool_of_restricted_users_does_all_of_its_work(
    guarded: Guarded, guarded_pool: tuple[Pool, str], wait_until: WaitUntil
) -> None:
    pool, url = guarded_pool
    with guarded.client("operator") as client:
        client.acl_log_reset()
    with Client(url) as client:
        for i in range(20):
            assert client.predict(PAIR, worker=1 + i % 2).outputs == DOUBLED
        large = np.arange(2.0 * N_LARGE).reshape(-1, 2)
        assert np.array_equal(client.predict(large).to_numpy()["y"], 2 * large)
        first = client.submit(PAIR, idempotency_key="once")
        assert client.submit(PAIR, idempotency_key="once").id == first.id
        workers = [process for process in pool.processes if "workers" in str(process.args)]
        for pid in [replica.pid for worker in client.workers() for replica in worker.replicas]:
            os.kill(pid, signal.SIGSTOP)
        waiting = [client.submit(PAIR, worker=2) for _ in range(5)]
        assert client.cancel(waiting[-1].id).status == "cancelled"
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait(10)
        start_worker(pool, guarded, 2)
        wait_until(
            lambda: all(client.result(job.id).status == "succeeded" for job in waiting[:-1]),
            timeout_s=60,
            what="what the killed worker had is run",
        )
        (found,) = httpx.get(f"{url}/findings").json()["findings"]
        assert "appendonly" in found["detail"]
        flower_sees_the_batches(pool, guarded, waiting[0].id, wait_until)
    assert denied(guarded) == []
    assert logs(pool, "NOPERM") == ""
    assert logs(pool, "insecure SSL") == ""
    for user in USERS:
        assert logs(pool, guarded.password(user)) == logs(pool, quote(guarded.password(user), safe="")) == ""


async def test_a_certificate_that_is_not_accepted_is_named(guarded: Guarded) -> None:
    by_address = guarded.url("controller").replace(
        "localhost", "127.0.0.1"
    )  # the certificate names localhost
    untrusted = guarded.url("controller").partition("?")[0]
    for url, reason in ((untrusted, "self.signed|unable to get local issuer"), (by_address, "IP address")):
        settings = Settings(redis_url=url, redis_password_file=guarded.password_file("controller"))
        expected = rf"by TLS: its certificate is not accepted \(.*({reason}).*\); see ssl_ca_certs"
        async with connect_async(settings) as connection:
            with pytest.raises(LedgerUnavailableError, match=expected), ledger_errors():
                await connection.ping()
        with (
            connect(settings) as client,
            pytest.raises(LedgerUnavailableError, match=expected),
            ledger_errors(),
        ):
            client.ping()


async def test_the_controllers_user_may_count_for_a_rate_limit(guarded: Guarded) -> None:
    with guarded.client("operator") as client:
        client.acl_log_reset()
    settings = Settings(
        redis_url=guarded.url("controller"), redis_password_file=guarded.password_file("controller")
    )
    outcomes: list[bool] = []
    async with connect_async(settings) as connection:
        limit, caller = RateLimit("3/second", connection), Caller("shop", is_operator=False)
        give_up_at_s = time.monotonic() + 20
        while outcomes[-2:] != [False, True] and time.monotonic() < give_up_at_s:
            try:
                await limit.count(caller, None, 1)
                outcomes.append(True)
            except RateLimitError:
                outcomes.append(False)
                await asyncio.sleep(0.05)
    assert outcomes[:4] == [True, True, True, False]
    assert outcomes[-1]
    assert denied(guarded) == []


def flower_sees_the_batches(pool: Pool, guarded: Guarded, job_id: str, wait_until: WaitUntil) -> None:
    port = pool.give_port()
    variables = guarded.variables("flower") | {"FLOWER_UNAUTHENTICATED_API": "true"}
    pool.start("cli", "flower", f"--port={port}", **variables)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as flower:
        wait_until(
            lambda: f"modelyard:queue:{MODEL}:2" in queues_in(flower),
            timeout_s=60,
            what="Flower sees the worker",
        )
        assert flower.get("/api/queues/length").json()["active_queues"][0]["messages"] == 0
        with Client(pool.environment["URL"]) as client:
            batch = client.submit(PAIR, worker=2).id.partition(".")[0]
        wait_until(lambda: batch in flower.get("/api/tasks").json(), what="Flower sees the batch")


def logs(pool: Pool, word: str) -> str:
    """Lines of the pool's logs with a word."""
    text = "".join(path.read_text(errors="replace") for path in pool.folder.glob("*.log"))
    return "\n".join(line for line in text.splitlines() if word in line)


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET *",
        "KEYS *",
        "SCAN 0",
        "MONITOR",
        "SHUTDOWN",
        "ACL LIST",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "REPLICAOF localhost 1",
        "MODULE LIST",
        "SCRIPT FLUSH",
        "FUNCTION FLUSH",
        "SAVE",
        "GET foreign",
        "SET foreign 1",
        "EVAL return(redis.call('set','foreign',1)) 0",
        "PUBLISH foreign 1",
        "SUBSCRIBE foreign",
    ],
)
def test_a_user_of_a_process_can_do_nothing_else(guarded: Guarded, command: str) -> None:
    for user in ("controller", "worker", "flower"):
        with (
            guarded.client(user) as client,
            pytest.raises(redis.ResponseError, match=r"permission|can't access"),
        ):
            client.execute_command(*command.split())


@pytest.mark.parametrize(
    "key", ["modelyard:secret", "modelyard:once:key", "modelyard:lease:reconciler", "foreign"]
)
def test_a_worker_cannot_make_job_ids_or_play_the_controller(guarded: Guarded, key: str) -> None:
    for user in ("worker", "flower"):
        with guarded.client(user) as client, pytest.raises(redis.ResponseError):
            client.get(key)


def test_flower_can_read_the_length_of_a_queue_and_change_none(guarded: Guarded) -> None:
    with guarded.client("flower") as client:
        assert client.llen("modelyard:queue:X:1") == 0
        for command in ("LPUSH", "RPOP"):
            with pytest.raises(redis.ResponseError):
                client.execute_command(command, "modelyard:queue:X:1", 1)


def test_nobody_gets_in_without_a_password(guarded: Guarded) -> None:
    options = {"port": guarded.port, "ssl": True, "ssl_ca_certs": f"{guarded.folder}/ca.pem"}
    for user in (None, "default", *USERS):
        with (
            redis.Redis(username=user, retry=Retry(NoBackoff(), 0), **options) as client,  # type: ignore[arg-type]
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def test_a_certificate_of_another_authority_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = Settings(
        redis_url=guarded.url("worker").replace(str(guarded.folder), str(tmp_path)),
        redis_password_file=guarded.password_file("worker"),
    )
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"), connect(settings) as client:
        client.ping()
    for tls in (settings.celery_tls, None):  # the second: what Celery does with the URL alone
        with (
            Connection(settings.celery_broker_url, ssl=tls) as connection,
            pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            connection.ensure_connection(max_retries=1, timeout=1)
