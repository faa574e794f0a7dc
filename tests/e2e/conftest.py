"""A pool of real processes: trained versions, workers, controllers, on the test process's own Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from modelyard import Client
from modelyard.digits import heldout_indices, load_digits_28
from tests import light_registry
from tests.conftest import NewRegistry, RedisServer, WaitUntil, running_redis

MODEL = "MNIST_PyTorch_Model"
START_S = 90.0


@dataclass(frozen=True)
class Digits:
    """Held-out digits: images float32, shape (n, 1, 28, 28), in [0, 1]; labels int64, shape (n,)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def body(self, index: int) -> dict[str, object]:
        """A request body with one digit."""
        return {"data": self.images[index : index + 1].round(4).tolist()}


@dataclass
class Pool:
    """Starts and stops the processes of one pool."""

    folder: Path
    redis_url: str
    give_port: Callable[[], int]
    wait_until: WaitUntil
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `python -m <arguments>` with the pool's environment."""
        environment = os.environ | {
            "REDIS_URL": self.redis_url,
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlruns.db",
            "MODELYARD_LAME_DUCK_S": "0",
        }
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".log", delete=False) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.folder,
                env=environment | self.environment | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def worker(self, version: int, number: int) -> subprocess.Popen[bytes]:
        """Start a worker of a version."""
        return self.start("workers", MODEL_NAME=MODEL, MODEL_VERSION=str(version), WORKER=str(number))

    def controller(self) -> str:
        """Start a controller and return its URL once it answers."""
        port = self.give_port()
        self.start("cli", "serve", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        self.wait_until(lambda: answers(f"{url}/healthz"), timeout_s=START_S, what="the controller answers")
        return url

    def serving(self, url: str) -> subprocess.Popen[bytes]:
        """The controller that listens at a URL of `controller`."""
        arguments = ["--port", str(urlsplit(url).port)]
        (process,) = [each for each in self.processes if list(each.args)[-2:] == arguments]  # type: ignore[arg-type]
        return process

    def wait_for_workers(self, url: str, count: int) -> None:
        """Return once that many workers are ready."""
        self.wait_until(
            lambda: ready_workers(url) == count, timeout_s=START_S, what=f"{count} workers are ready"
        )

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM and the exit status."""
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
        self.processes.remove(process)
        return status

    def close(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            process.terminate()
        give_up_at = time.monotonic() + 15
        for process in self.processes:
            try:
                process.wait(max(0.1, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def queues_in(flower: httpx.Client) -> set[str]:
    """Queues that Flower lists; none while it does not answer."""
    try:
        workers = flower.get("/api/workers", params={"refresh": "true"}).json()
    except (httpx.HTTPError, ValueError):
        return set()
    return {queue["name"] for worker in workers.values() for queue in worker.get("active_queues", [])}


def ready_workers(url: str) -> int:
    rows = httpx.get(f"{url}/workers", timeout=10).json()["workers"]
    return sum(row["live_workers"] for row in rows)


@pytest.fixture(scope="session")
def registry(new_registry: NewRegistry) -> Path:
    """A folder with an MLflow registry that holds version 1 (mlp) and version 2 (cnn, the better one)."""
    return new_registry(train_both)


def train_both(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "cli", "train", "--arch", "mlp", "--arch", "cnn"],
        cwd=folder,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns.db"},
        check=True,
        timeout=150,
    )


@pytest.fixture(scope="session")
def light(new_registry: NewRegistry) -> Path:
    """A folder with the registry of `tests/light_registry.py`."""
    return new_registry(light_registry.lay_out)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Digits that the versions were not trained on."""
    images, labels = load_digits_28()
    held_out = heldout_indices(labels, 0.2, 0)
    return Digits(images[held_out], labels[held_out])


@pytest.fixture
def pool(
    registry: Path, redis_server: RedisServer, free_port: Callable[[], int], wait_until: WaitUntil
) -> Iterator[Pool]:
    """An empty pool; whatever a test starts in it ends with the test."""
    made = Pool(registry, redis_server.url, free_port, wait_until)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def served(
    registry: Path, free_port: Callable[[], int], wait_until: WaitUntil
) -> Iterator[tuple[Pool, str, Client]]:
    """A pool with a controller and one worker for each version, that several tests share.

    A test that stops one of these starts it again.
    """
    with running_redis() as server:
        pool = Pool(registry, server.url, free_port, wait_until)
        try:
            pool.worker(1, 1)
            pool.worker(2, 2)
            url = pool.controller()
            pool.wait_for_workers(url, 2)
            with Client(url) as client:
                yield pool, url, client
        finally:
            pool.close()


@pytest.fixture
def own_state(free_port: Callable[[], int], measured: dict[str, str]) -> Iterator[dict[str, str]]:
    """Environment variables: a state directory and ports of the test's own."""
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as state_dir:
        inherited = os.environ | measured
        inherited.pop("REDIS_URL", None)
        yield inherited | {
            "MODELYARD_STATE_DIR": state_dir,
            "MODELYARD_PORT": str(free_port()),
            "FLOWER_PORT": str(free_port()),
            "MLFLOW_PORT": str(free_port()),
        }


@pytest.fixture
def environment(own_state: dict[str, str], registry: Path) -> dict[str, str]:
    """The same, and the trained versions."""
    return own_state | {"MLFLOW_TRACKING_URI": f"sqlite:///{registry}/mlruns.db"}
