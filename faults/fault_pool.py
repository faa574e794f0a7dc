"""A pool of real processes for fault tests: Redis, controllers and workers, each restarted at once when it dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.redis import keys
from app.redis.client import connect_url
from app.redis.sentinel import watch
from app.settings import Settings
from app.worker_record import WorkerRecord, decode_record
from cli.local_pool import redis_server as pool_redis
from cli.local_pool.present_state import redis_answers
from cli.local_pool.programs import http_answers
from faults.fault_registry import MODEL, tracking_uri
from faults.proxy import Proxy
from faults.sentinel_servers import SentinelServers
from faults.shipped_pool import ShippedRedis

READY_S = 90.0
STOP_S = 30.0
POLL_S = 0.02
BACK_OFF_S = 0.5
MODELYARD = (sys.executable, "-m", "cli")


@dataclass(frozen=True)
class PoolPlan:
    """The parts of a pool. Rows with equal plans share a pool.

    Attributes:
        replicas: Workers of version 1.
        environment: Further settings, as pairs of variable and value.
        redis_options: Further lines of Redis's configuration.
        proxied: Whether all processes reach Redis through `Pool.proxy`.
        as_shipped: Whether to run the Redis of docker-compose.yml, with one user per kind of process.
        sentinels: Whether to run a primary, two replicas and three Sentinels.
    """

    replicas: int = 2
    controllers: int = 2
    environment: tuple[tuple[str, str], ...] = ()
    redis_options: tuple[str, ...] = ()
    proxied: bool = False
    as_shipped: bool = False
    sentinels: bool = False


TIGHT_LIMITS = PoolPlan(environment=(("MODELYARD_INFERENCE_TIMEOUT_S", "2"), ("MODELYARD_DRAIN_S", "3")))


QUICK_HEARTBEAT = {"MODELYARD_HEARTBEAT_S": "0.25"}


class Supervised:
    """One process, restarted whenever it ends until it is stopped.

    Attributes:
        starts: Number of starts.
        exits: `time.monotonic()` and exit status of each end.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        self.log = folder / f"{name}.log"
        self.starts = 0
        self.exits: list[tuple[float, int]] = []
        self._command = list(command)
        self._folder = folder
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Id of the current or last process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and restart it whenever it ends."""
        self._stopping.clear()
        self._launch()
        self._thread = threading.Thread(target=self._keep, name=self.name, daemon=True)
        self._thread.start()

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL; it is restarted at once. A supervisor's serving process dies with it."""
        self.send(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM; it is restarted once it has ended."""
        self.send(signal.SIGTERM)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it for good, with SIGKILL after `STOP_S`, and return its exit status."""
        self._stopping.set()
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return 0
        with suppress(ProcessLookupError):
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a suspended process handles no other signal
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        thread.join()
        return process.wait()

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**_inherited(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.starts += 1

    def _keep(self) -> None:
        while True:
            assert self._process is not None
            started_at = time.monotonic()
            status = self._process.wait()
            self.exits.append((time.monotonic(), status))
            # A process that fails at its start must not spin.
            if self._stopping.wait(BACK_OFF_S if time.monotonic() - started_at < 1 else 0):
                return
            self._launch()


class Pool:
    """The processes of one pool; `open_pool` creates one.

    Attributes:
        client: Connection to Redis that bypasses the proxy.
        redis_url: URL of that connection.
    """

    def __init__(self, plan: PoolPlan, registry: Path, folder: Path, variables: Mapping[str, str]) -> None:
        self.plan = plan
        self.folder = folder
        settings = Settings(state_dir=folder, redis_url="")
        config = pool_redis.write_config(settings)
        with config.open("a") as file:
            file.writelines(f"{line}\n" for line in plan.redis_options)
        self.redis_socket = settings.redis_socket
        self.redis_url = f"unix://{self.redis_socket}"
        self.redis = Supervised("redis", [str(pool_redis.find_server()), str(config)], {}, folder)
        self.proxy = Proxy(self.redis_socket, folder / "way.sock")
        self._access: dict[str, dict[str, str]] = {}
        if plan.as_shipped:
            server = ShippedRedis(folder, _free_port())
            self.redis_url = server.url_with_password("operator")
            self.redis = Supervised("redis", server.command, {}, folder)
            self._access = {user: server.variables(user) for user in ("controller", "worker")}
        self.sentinels = SentinelServers(folder / "servers", plan.redis_options)
        if plan.sentinels:
            self.redis_url = self.sentinels.url
        self.client: Any = connect_url(self.redis_url)
        self._following = ExitStack()
        self._environment = {
            "REDIS_URL": self.proxy.url if plan.proxied else self.redis_url,
            "MLFLOW_TRACKING_URI": tracking_uri(registry),
            "MODEL_NAME": MODEL,
            "ALLOW_PICKLE_MODELS": "true",  # the model is Python code of this project
            "MODELYARD_LAME_DUCK_S": "0",  # except in rows with a load balancer
            **variables,
            **dict(plan.environment),
        }
        self.controllers: list[Supervised] = []
        self.workers: list[Supervised] = []
        self._ports: dict[str, int] = {}
        for _ in range(plan.controllers):
            self.add_controller()
        for _ in range(plan.replicas):
            self.add_worker()

    @property
    def urls(self) -> list[str]:
        """Address of each controller."""
        return [self.url(controller) for controller in self.controllers]

    def url(self, controller: Supervised) -> str:
        """Address of a controller."""
        return f"http://127.0.0.1:{self._ports[controller.name]}"

    def queue(self, version: int = 1) -> str:
        """Queue of a version."""
        return keys.queue_name(MODEL, version)

    def add_controller(self, **variables: str) -> Supervised:
        """Add a controller without starting it."""
        name, port = f"controller-{len(self.controllers) + 1}", _free_port()
        environment = {
            **self._environment,
            **self._access.get("controller", {}),
            "MODELYARD_PORT": str(port),
            **variables,
        }
        self._ports[name] = port
        self.controllers.append(Supervised(name, (*MODELYARD, "serve"), environment, self.folder))
        return self.controllers[-1]

    def add_worker(self, version: int = 1, **variables: str) -> Supervised:
        """Add a worker without starting it."""
        environment = {
            **self._environment,
            **self._access.get("worker", {}),
            "MODEL_VERSION": str(version),
            "WORKER": str(version),
            **variables,
        }
        name = f"worker-{len(self.workers) + 1}"
        self.workers.append(Supervised(name, (*MODELYARD, "worker"), environment, self.folder))
        return self.workers[-1]

    def remove(self, process: Supervised) -> None:
        """Stop a worker or controller that a row added."""
        process.stop()
        for group in (self.workers, self.controllers):
            if process in group:
                group.remove(process)

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        if self.plan.sentinels:
            self._following.enter_context(self.sentinels)
            self._following.enter_context(watch(self.redis_url))
        else:
            self.redis.start()
        wait_until(lambda: redis_answers(self.redis_url), "Redis answers")
        if self.plan.proxied:
            self.proxy.__enter__()
        for process in (*self.controllers, *self.workers):
            process.start()
        self.wait_until_well()

    def wait_until_well(self) -> None:
        """Return once every controller and worker is ready."""
        for url in self.urls:
            wait_until(lambda url=url: http_answers(f"{url}/readyz"), f"{url} is ready", READY_S)  # type: ignore[misc]
        for worker in self.workers:
            wait_until(lambda worker=worker: self.is_ready(worker), f"{worker.name} is ready", READY_S)  # type: ignore[misc]

    def is_ready(self, worker: Supervised) -> bool:
        """Whether a worker's present serving process is ready."""
        record = self.serving(worker)
        return record is not None and record.state == "ready"

    def serving(self, worker: Supervised) -> WorkerRecord | None:
        """Record of a worker's serving process if both are alive; a dead one's record stays for a while."""
        own = (record for record in self.records() if record.main_pid == worker.pid)
        return next((record for record in own if runs(record.pid)), None)

    def records(self) -> list[WorkerRecord]:
        """Records of the live workers."""
        # By their index: a scan of all keys takes a third of a second once there are thousands of jobs.
        names = [keys.worker(worker_id.decode()) for worker_id in self.client.zrange(keys.WORKERS, 0, -1)]
        found = self.client.mget(names) if names else []
        return [decode_record(data) for data in found if data]

    def backlog(self) -> int:
        """Jobs without an outcome in all queues."""
        return sum(int(jobs) for jobs in self.client.hvals(keys.BACKLOG))

    def stop(self) -> None:
        """Stop everything, Redis last."""
        self.stop_processes()
        self.client.close()
        if self.plan.proxied:
            self.proxy.__exit__()

    def stop_processes(self) -> None:
        """Stop controllers and workers, then Redis; `start` restarts them unless the pool is proxied."""
        threads = [threading.Thread(target=each.stop) for each in (*self.controllers, *self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.redis.stop()
        self._following.close()


@contextmanager
def open_pool(plan: PoolPlan, registry: Path, *, short: bool) -> Iterator[Pool]:
    """A ready pool, stopped and removed on exit. With `short`, its heartbeats are faster."""
    folder = Path(tempfile.mkdtemp(prefix="yard-"))  # short: a socket's path has at most 104 bytes
    pool = Pool(plan, registry, folder, QUICK_HEARTBEAT if short else {})
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()
        shutil.rmtree(folder, ignore_errors=True)


class TooLateError(Exception):
    """A condition did not become true in time."""


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 30.0) -> None:
    """Return when a condition holds.

    Raises:
        TooLateError: It did not hold within `limit_s`.
    """
    give_up_at = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise TooLateError(f"not within {limit_s:g} s: {what}")
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _inherited() -> dict[str, str]:
    # The caller's settings must not change the measurement. Without bytecode every start takes three times as
    # long; with coverage 1.4 times.
    own = ("MODELYARD_", "MLFLOW_", "MODEL_", "REDIS_URL", "WORKER", "PYTHONDONTWRITEBYTECODE", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def runs(pid: int) -> bool:
    """Whether a process with this id exists."""
    return Path(f"/proc/{pid}").exists()


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
