"""A pool over TLS behind Sentinel, as docs/deployment.md says: shipped users, recommended settings, and Flower."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from faults.sentinel_servers import SentinelServers
from modelyard import Client
from tests import light_registry
from tests.conftest import WaitUntil
from tests.e2e.conftest import Pool, queues_in
from tests.light_registry import MODEL, PAIR
from tests.redis_users import issue_certificates, shipped_users

pytestmark = pytest.mark.timeout(400)
PASSWORD, SENTINEL_PASSWORD = "p@ss/w:rd", "s3nt/nel"
RECOMMENDED = ("min-replicas-to-write 1", "min-replicas-max-lag 5")
PAUSE_S = 0.02


@pytest.fixture
def servers(system_tool: Callable[[str, str], str]) -> Iterator[SentinelServers]:
    program = system_tool("redis-server", "redis-server")  # that of the package of Valkey speaks no TLS
    with tempfile.TemporaryDirectory(prefix="yard-") as name:
        folder = Path(name)
        issue_certificates(folder)
        with SentinelServers(
            folder,
            RECOMMENDED,
            password=PASSWORD,
            sentinel_password=SENTINEL_PASSWORD,
            users=shipped_users(lambda _: PASSWORD),
            certificates=folder,
            program=program,
        ) as started:
            yield started


@pytest.fixture
def pool(
    servers: SentinelServers, light: Path, free_port: Callable[[], int], wait_until: WaitUntil, tmp_path: Path
) -> Iterator[Pool]:
    """A worker of each version; whatever else a test starts ends with the test."""
    made = Pool(light, "", free_port, wait_until, light_registry.variables(light))
    for name, password in (("redis", PASSWORD), ("sentinel", SENTINEL_PASSWORD)):
        (tmp_path / name).write_text(f"{password}\n")
    made.environment |= {
        "REDIS_PASSWORD_FILE": str(tmp_path / "redis"),
        "REDIS_SENTINEL_PASSWORD_FILE": str(tmp_path / "sentinel"),
    }
    try:
        for version in ("1", "2"):
            made.start("workers", MODEL_VERSION=version, WORKER=version, REDIS_URL=url_of(servers, "worker"))
        yield made
    finally:
        made.close()


def url_of(servers: SentinelServers, user: str) -> str:
    """What REDIS_URL takes for a process of this user."""
    return servers.url.replace("://", f"://{user}@")


class Load:
    """Posts a job at a time, without repeating any."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.accepted: list[str] = []
        self.refused: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Post while the block runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._post, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def wait_for_more(self, wait_until: WaitUntil) -> None:
        """Return once further jobs were accepted."""
        enough = len(self.accepted) + 50
        wait_until(lambda: len(self.accepted) >= enough, timeout_s=60, what="jobs are accepted")

    def _post(self, ended: threading.Event) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not ended.wait(PAUSE_S):
                worker = 1 + len(self.accepted) % 2
                answer = client.post("/predict", params={"worker": worker}, json={"data": PAIR.tolist()})
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["id"])
                else:
                    self.refused[answer.json()["code"]] += 1


def test_ordered_failovers_and_a_dead_primary_lose_no_job_and_flower_goes_on(
    servers: SentinelServers, pool: Pool, wait_until: WaitUntil
) -> None:
    pool.environment["REDIS_URL"] = url_of(servers, "controller")
    url = pool.controller()
    pool.wait_for_workers(url, 2)
    load, port = Load(url), pool.give_port()
    pool.start(
        "cli",
        "flower",
        f"--port={port}",
        REDIS_URL=url_of(servers, "flower"),
        FLOWER_UNAUTHENTICATED_API="true",
    )
    with Client(url) as client, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as flower:
        wait_until(lambda: flower_sees(flower, client), timeout_s=60, what="Flower sees a batch")
        with load.running():
            for fail_over in (servers.fail_over, lambda: servers.stop(servers.primary())):
                former = servers.primary()
                fail_over()
                wait_for_another_primary(servers, former, wait_until)
                load.wait_for_more(wait_until)
                wait_until(lambda: flower_sees(flower, client), timeout_s=60, what="Flower has followed")
                servers.start_dead()
                wait_until(lambda: servers.is_complete, timeout_s=60, what="the primary has two replicas")
        jobs = [client.wait(job_id) for job_id in load.accepted]
    assert {job.status for job in jobs} == {"succeeded"}
    assert set(load.refused) <= {"ledger_unavailable", "no_candidate"}
    text = "".join(path.read_text(errors="replace") for path in pool.folder.glob("*.log"))
    for word in ("NOPERM", "insecure SSL", PASSWORD, quote(PASSWORD, safe=""), SENTINEL_PASSWORD):
        assert word not in text


def wait_for_another_primary(servers: SentinelServers, former: int, wait_until: WaitUntil) -> None:
    wait_until(lambda: servers.primary() != former, timeout_s=60, what="the Sentinels name another primary")


def flower_sees(flower: httpx.Client, client: Client) -> bool:
    """Whether Flower shows the queue of a worker, the lengths of queues, and a new batch."""
    if f"modelyard:queue:{MODEL}:2" not in queues_in(flower):
        return False
    batch = client.submit(PAIR, worker=2).id.partition(".")[0]
    has_lengths = flower.get("/api/queues/length").status_code == 200
    return has_lengths and batch in flower.get("/api/tasks").json()
