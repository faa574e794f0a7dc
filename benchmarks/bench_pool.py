"""A pool whose processes are started and stopped one by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import redis

from app.redis import keys
from app.worker_record import decode_record
from benchmarks import processes
from benchmarks.systems import LOOPBACK
from cli.local_pool.redis_server import config_text

FAR_S = 3600
READY_LIMIT_S = 90.0


class Pool:
    """Processes of one pool, started one by one.

    Args:
        folder: Scratch folder; short, for the socket.
        variables: More of the environment of its processes.
    """

    def __init__(self, folder: Path, tracking_uri: str, **variables: str) -> None:
        self.folder = folder
        self.port = processes.free_port()
        self.redis_url = f"unix://{folder}/r.sock"
        self._environment = {
            **os.environ,
            "REDIS_URL": self.redis_url,
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MODEL_VERSION": "1",
            "MODELYARD_BACKLOG_LIMIT": "4000000",
            "MODELYARD_LAME_DUCK_S": "0",
            "MODELYARD_MAX_DEADLINE_S": str(FAR_S),
            "MODELYARD_INFERENCE_TIMEOUT_S": str(FAR_S),  # otherwise a suspended worker would count as hung
            **variables,
        }

    def start_redis(self) -> int:
        """Redis as `modelyard up` runs it, on disk."""
        config = self.folder / "redis.conf"
        config.write_text(config_text(self.folder, self.folder / "r.sock"))
        started = self._start(["redis-server", str(config)])
        self._wait(lambda: bool(self.client().ping()), "Redis answers")
        return started

    def start_controller(self, port: int | None = None, variables: Mapping[str, str] = {}) -> int:
        """Start a controller, with more variables in its environment, and wait until it listens."""
        port = port or self.port
        started = self._start([sys.executable, "-m", "cli", "serve", "--port", str(port)], variables)
        self._wait(lambda: processes.post(f"http://{LOOPBACK}:{port}/predict", "{}")[0] > 0, "a controller")
        return started

    def start_worker(self) -> int:
        """Start a worker and wait until it serves."""
        started = self._start([sys.executable, "-m", "cli", "worker"])
        self._wait(lambda: started in self._live(), "a worker")
        return started

    def serving_pid(self, worker: int) -> int:
        """Process id of a worker's serving process."""
        return self._live()[worker]

    def stop(self, pid: int) -> None:
        """Stop one process."""
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)

    def client(self) -> redis.Redis:
        """A connection to the pool's Redis."""
        return redis.Redis.from_url(self.redis_url)

    def _live(self) -> dict[int, int]:
        """Process ids of the ready workers' serving processes, by their supervisor's."""
        with self.client() as client:
            ids = [each.decode() for each in client.zrange(keys.WORKERS, 0, -1)]
            records = [decode_record(raw) for raw in map(client.get, map(keys.worker, ids)) if raw]
        return {record.main_pid: record.pid for record in records if record.state == "ready"}

    def _start(self, command: list[str], variables: Mapping[str, str] = {}) -> int:
        environment = {**self._environment, **variables}
        with (self.folder / "pool.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log).pid

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < give_up_at:
            try:
                if condition():
                    return
            except (redis.RedisError, OSError):
                pass
            time.sleep(0.01)
        log = (self.folder / "pool.log").read_text(errors="replace")
        raise processes.StartError(f"{what} did not come up; the end of its log:\n{log[-2000:]}")
