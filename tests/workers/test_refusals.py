"""Redis answers and refuses, for a while: a real worker and a controller say so, outlive it and lose nothing."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import Redis

from app.clock import to_ms
from app.redis import keys
from faults.proxy import Proxy
from tests.controller.conftest import OwnRedis, Served, serving, settings_for, until
from tests.workers.worker_processes import Start, ready_pids

HEARTBEAT_S = 0.5
LIMIT_S = 30.0


@dataclass
class Server:
    """A Redis server with a TCP port for its replicas, and a user whom no test keeps out."""

    redis: OwnRedis
    port: int
    folder: Path
    operator: Redis

    @property
    def socket(self) -> Path:
        return Path(self.redis.url.removeprefix("unix://"))

    @property
    def data(self) -> Path:
        return self.folder / "data"


@pytest.fixture
def servers(free_port: Callable[[], int]) -> Iterator[list[Server]]:
    """Two of them."""
    made = []
    for _ in range(2):
        folder, port = Path(tempfile.mkdtemp(prefix="yard-")), free_port()
        own = OwnRedis(folder)
        operator = redis.Redis.from_url(own.url, username="operator", password="operator")
        made.append(Server(own, port, folder, operator))
        made[-1].data.mkdir()
        own.options = ["--port", str(port), "--dir", str(made[-1].data), "--appendonly", "no"]
        own.options += ["--user", *["operator", "on", ">operator", "~*", "&*", "+@all"]]
        # As the refused default user, the replica would come back by plain SYNC, which acknowledges nothing.
        own.options += ["--masteruser", "operator", "--masterauth", "operator"]
        own.start()
    yield made
    for server in made:
        server.operator.close()
        server.redis.client.close()
        server.redis.kill()
        shutil.rmtree(server.folder, ignore_errors=True)


async def eventually(condition: Callable[[], Awaitable[object]], what: str) -> None:
    give_up_at = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < give_up_at, what
        await asyncio.sleep(0.02)


@dataclass
class Callers:
    """What callers of a controller see."""

    served: Served
    operator: Redis
    reasons: Sequence[str] = ()
    accepted: dict[str, str] = field(default_factory=dict)

    async def post(self, query: str = "") -> tuple[int, dict[str, str]]:
        answer = await self.served.post({"data": [0, 1]}, query)
        return answer.status_code, answer.json()

    async def is_accepted(self) -> bool:
        status, self.accepted = await self.post()
        return status == 202

    async def is_refused(self, words: str) -> bool:
        """Whether /readyz says so in Redis's words."""
        self.reasons = (await self.served.http.get("/readyz")).json()["reasons"]
        return any(words in reason for reason in self.reasons)

    async def are_served(self) -> bool:
        if (await self.served.http.get("/readyz")).status_code != 200:
            return False
        status, body = await self.post("?wait=20")
        return status == 200 and body["status"] == "succeeded"

    async def live_through(
        self, words: str, refuse: Callable[[], object], relent: Callable[[], object]
    ) -> None:
        """Redis refuses, with these words, and then no longer; what was accepted before comes to its outcome."""
        await eventually(self.is_accepted, f"a job is accepted before {words}")
        job = self.accepted
        refuse()
        await eventually(lambda: self.is_refused(words), f"/readyz says {words}")
        await until(
            lambda: silence_ms(self.operator) > 4 * HEARTBEAT_S * 1000,
            "the worker's heartbeat is refused again and again",
        )
        assert (await self.post())[0] == 503
        relent()
        await eventually(self.are_served, f"jobs succeed after {words}")
        answer = await self.served.http.get(f"{job['result_url']}?wait=20")
        assert answer.json()["status"] == "succeeded", (words, answer.text)


def silence_ms(client: redis.Redis) -> float:
    """Since the last heartbeat of a worker."""
    seconds, microseconds = client.time()
    beats: Any = client.zrange(keys.WORKERS, 0, -1, withscores=True)
    return to_ms(seconds, microseconds) - max(float(score) for _, score in beats)


def fail_to_save(server: Server) -> None:
    shutil.rmtree(server.data)
    server.operator.config_set("save", "3600 1")
    server.operator.bgsave()


def consumes(client: redis.Redis) -> bool:
    """Whether a worker waits for a message."""
    return any(each["cmd"] == "brpop" for each in client.client_list())


async def live_through_full(operator: redis.Redis) -> None:
    """A worker that reconnects while Redis is full still asks for the jobs that were accepted before."""
    await until(lambda: consumes(operator), "the worker asks for work")
    operator.config_set("maxmemory", 1)
    operator.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: consumes(operator), "the worker asks a full Redis for work", timeout_s=LIMIT_S)
    operator.config_set("maxmemory", 0)


def kick_all_out(server: Server) -> None:
    server.operator.config_set("maxclients", 1)
    server.operator.client_kill_filter(_type="normal", skipme=True)


def keep_out(operator: redis.Redis) -> None:
    operator.execute_command("ACL", "SETUSER", "default", "resetpass", ">unknown")
    operator.client_kill_filter(_type="normal", skipme=True)


def swap(first: Server, second: Server) -> None:
    """A planned failover, after which the old primary keeps its connections."""
    first.operator.wait(1, 5000)
    second.operator.replicaof("NO", "ONE")
    first.operator.replicaof("127.0.0.1", str(second.port))


@pytest.mark.timeout(240)
async def test_a_redis_that_answers_and_refuses_is_outlived_by_all_and_named_by_readyz(
    start_worker: Start, servers: list[Server], tmp_path: Path
) -> None:
    first, second = servers
    await until(lambda: first.redis.answers() and second.redis.answers(), "both answer", timeout_s=30)
    second.operator.replicaof("127.0.0.1", str(first.port))
    operator = first.operator
    with Proxy(first.socket, tmp_path / "way.sock") as way:
        worker = start_worker("1", MODEL_NAME="Unruly", REDIS_URL=way.url)
        await until(lambda: ready_pids(operator), "the worker is ready", timeout_s=60)
        async with serving(settings_for(way.url, heartbeat_s=HEARTBEAT_S)) as served:
            callers = Callers(served, operator)
            await eventually(callers.are_served, "jobs succeed")
            await live_through_full(operator)
            await eventually(callers.are_served, "jobs succeed after Redis was full")
            await callers.live_through(
                "NOPERM",
                lambda: operator.execute_command("ACL", "SETUSER", "default", "-@all"),
                lambda: operator.execute_command("ACL", "SETUSER", "default", "+@all"),
            )
            await callers.live_through(
                "NOREPLICAS",
                lambda: operator.config_set("min-replicas-to-write", 2),
                lambda: operator.config_set("min-replicas-to-write", 0),
            )
            await callers.live_through(
                "MISCONF",
                lambda: fail_to_save(first),
                lambda: operator.config_set("stop-writes-on-bgsave-error", "no"),
            )
            await callers.live_through(
                "NOAUTH",
                lambda: keep_out(operator),
                lambda: operator.execute_command("ACL", "SETUSER", "default", "nopass"),
            )
            await callers.live_through(
                "max number of clients reached",
                lambda: kick_all_out(first),
                lambda: operator.config_set("maxclients", 1000),
            )
            await callers.live_through(
                "READONLY",
                lambda: swap(first, second),
                lambda: way.lead_to(second.socket),
            )
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    assert "starting another" not in errors
    for words in ("NOPERM", "NOREPLICAS", "MISCONF", "NOAUTH", "READONLY"):
        assert 1 <= errors.count(words) <= 6, errors
