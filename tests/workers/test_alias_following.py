"""`modelyard worker` with an alias: a moved alias is followed while a real controller answers requests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from tests.pool_samples import RedisServer
from tests.workers.worker_processes import LIGHT_MODEL, runs
from workers.process import health

WaitUntil = Callable[..., None]
MODEL, BROKEN = LIGHT_MODEL, 2
START_S = 180.0


@dataclass
class Followed:
    """A pool whose only worker follows `champion`: version 1, 3 and 4 are good, 2 fails its warm-up."""

    database: Path
    folder: Path
    url: str
    wait_until: WaitUntil
    registry: mlflow.MlflowClient
    environment: dict[str, str]
    worker: subprocess.Popen[str]
    log: Path

    def restart_worker(self) -> None:
        """Start the follower again after it has stopped."""
        self.worker.send_signal(signal.SIGTERM)
        assert self.worker.wait(60) == 0
        self.worker = _started(self.environment, self.log)

    @property
    def ready_file(self) -> str:
        return str(self.folder / "ready")

    def move(self, version: int) -> None:
        self.registry.set_registered_model_alias(MODEL, "champion", str(version))

    def workers(self) -> dict[int, dict[str, Any]]:
        """Version to the document of `/workers`, for versions with a live worker."""
        rows = httpx.get(f"{self.url}/workers").json()["workers"]
        return {row["model_version"]: row for row in rows if row["replicas"]}

    def await_version(self, version: int) -> None:
        self.wait_until(
            lambda: [*self.workers()] == [version],
            timeout_s=START_S,
            what=f"version {version} alone is served",
        )

    def warnings(self) -> str:
        return " ".join(
            text for row in self.workers().values() for each in row["replicas"] for text in each["warnings"]
        )

    def start_failure(self, version: int) -> dict[str, Any]:
        """Why a version does not start, from `/workers`; empty if nothing failed."""
        rows = httpx.get(f"{self.url}/workers").json()["workers"]
        return next((row["start_failure"] or {} for row in rows if row["model_version"] == version), {})

    def failing(self) -> list[str]:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("modelyard_version_start_failed{")]

    def behind(self) -> list[str]:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("modelyard_alias_behind_workers{")]


@dataclass
class Answers:
    """Status codes and versions of the answers to a stream of requests, and whether a worker was always healthy."""

    versions: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def asking(pool: Followed) -> Iterator[Answers]:
    """Posts requests one after another, by the alias and without a selector in turn, until the context ends."""
    answers, is_over = Answers(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=pool.url, timeout=30) as client:
            while not is_over.wait(0.1):
                for query in ({"model": f"{MODEL}@champion"}, {}):
                    answer = client.post("/predict", params={"wait": 20, **query}, json={"data": [[0, 0]]})
                    document = answer.json()
                    if answer.status_code == 200 and document["status"] == "succeeded":
                        answers.versions.append(document["model_version"])
                    else:
                        answers.failures.append(answer.text)
                if problem := health.problem(pool.ready_file):
                    answers.failures.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def pool(
    registry: str,
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    wait_until: WaitUntil,
    measured: dict[str, str],
) -> Iterator[Followed]:
    database = tmp_path / "mlruns.db"
    shutil.copy(registry.removeprefix("sqlite:///"), database)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    client = mlflow.MlflowClient()
    first = client.get_model_version(MODEL, "1")
    for _ in range(2):
        client.create_model_version(MODEL, first.source, first.run_id)
    port, log = free_port(), tmp_path / "worker.log"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = os.environ | {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": client.tracking_uri,
        "MODEL_NAME": MODEL,
        "MODEL_VERSION": "champion",
        "MODELYARD_HEARTBEAT_S": "0.5",  # a ready worker is healthy for 1.5 s, which a busy machine may take
        "MODELYARD_READY_FILE": str(tmp_path / "ready"),
        "MODELYARD_LAME_DUCK_S": "0",
        "ALLOW_PICKLE_MODELS": "true",
        "TMPDIR": str(temporary),
    }
    serve = [sys.executable, "-m", "cli", "serve", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    worker = _started(environment | measured, log)
    controller = subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL)
    followed = Followed(
        database, tmp_path, url, wait_until, client, environment | measured, worker=worker, log=log
    )
    try:
        ready_file = environment["MODELYARD_READY_FILE"]
        wait_until(
            lambda: _is_ready(url) and not health.problem(ready_file),
            timeout_s=START_S,
            what="a version is served, and the follower says so",
        )
        yield followed
    finally:
        mlflow.set_tracking_uri(before)
        for process in (followed.worker, controller):
            process.terminate()
            process.wait(60)


def _started(environment: dict[str, str], log: Path) -> subprocess.Popen[str]:
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", "worker"], env=environment, stderr=output, text=True
        )


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(600)  # starts workers one after another
def test_a_moved_alias_is_followed_without_a_failed_request_and_nothing_is_left_behind(
    pool: Followed,
) -> None:
    with asking(pool) as answers:
        pool.wait_until(lambda: answers.versions or answers.failures, what="version 1 answers")
        goes_on_while_a_version_cannot_be_served_or_the_registry_is_away(pool)
        pool.await_version(3)
        assert pool.behind()[0].endswith(" 0.0")
        assert not pool.warnings()
        pool.wait_until(lambda: not pool.start_failure(BROKEN), what="the failure is over")
        assert not pool.failing()
        assert set(answers.versions) <= {1, 3}
        for version in (4, 1, 4):
            pool.move(version)
        pool.wait_until(lambda: 4 in answers.versions, timeout_s=START_S, what="version 4 answers")
        pool.await_version(4)
        asked = len(answers.versions)
        pool.wait_until(lambda: len(answers.versions) > asked + 10, what="version 4 alone answers")
    assert not answers.failures
    assert set(answers.versions[asked + 2 :]) == {4}
    [replica] = pool.workers()[4]["replicas"]
    assert (replica["follows"], replica["main_pid"], replica["warnings"]) == ("champion", pool.worker.pid, [])
    [follower] = [each for each in Path(pool.folder, "tmp").glob("modelyard-*") if "follower" in each.name]
    assert len([each for each in follower.iterdir() if each.is_dir()]) == 1
    pool.worker.send_signal(signal.SIGTERM)
    assert pool.worker.wait(60) == 0
    assert not runs(replica["pid"])
    assert not [*Path(pool.folder, "tmp").glob("modelyard-*")]
    assert health.problem(pool.ready_file)


def goes_on_while_a_version_cannot_be_served_or_the_registry_is_away(pool: Followed) -> None:
    """Version 1 serves on and the follower says why; in the end the alias names version 3."""
    pool.move(BROKEN)
    pool.wait_until(lambda: pool.start_failure(BROKEN), timeout_s=START_S, what="it says so")
    assert "fails on zeros" in pool.start_failure(BROKEN)["reason"]
    [failing] = pool.failing()
    assert f'version="{BROKEN}"' in failing
    assert "version 2, which champion names now, is not served: " in pool.log.read_text()
    assert "; version 1 goes on serving" in pool.log.read_text()
    [behind] = pool.behind()
    assert 'alias="champion"' in behind
    assert 'version="1"' in behind
    assert behind.endswith(" 1.0")
    away = pool.database.rename(pool.folder / "away.db")
    elsewhere = mlflow.MlflowClient(f"sqlite:///{away}")
    pool.wait_until(
        lambda: "cannot be read again" in pool.log.read_text(), timeout_s=START_S, what="it is missed"
    )
    elsewhere.set_registered_model_alias(MODEL, "champion", "3")
    away.rename(pool.database)


@pytest.mark.timeout(600)
def test_a_follower_of_a_retired_version_waits_until_the_alias_moves(pool: Followed) -> None:
    httpx.post(f"{pool.url}/models/{MODEL}/versions/1/retire").raise_for_status()
    pool.restart_worker()
    pool.wait_until(
        lambda: "it also waits for champion to move" in pool.log.read_text(),
        timeout_s=START_S,
        what="the worker says that it waits",
    )
    assert not pool.workers()
    pool.move(3)
    pool.await_version(3)
    pool.wait_until(
        lambda: "champion is version 3 now" in pool.log.read_text(), what="the waiting worker has ended"
    )
    assert pool.worker.poll() is None
