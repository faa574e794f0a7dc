"""`modelyard up` while its file and its registry change, under load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelyard import Client
from tests.conftest import WaitUntil
from tests.e2e.conftest import answers
from tests.light_registry import MODEL, PAIR
from training.inventory import connect

START_S = 180.0


@contextmanager
def running_up(environment: dict[str, str], folder: Path) -> Iterator[Callable[[], str]]:
    """`modelyard up` in a folder; gives what it has printed."""
    log = folder / "up.txt"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", "--no-views"],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:
        yield log.read_text
    finally:
        up.send_signal(signal.SIGINT)
        status = up.wait(60)
    assert status == 0, log.read_text()


class Load:
    """Two threads that predict again and again, and wait for the outcomes.

    Attributes:
        versions: The versions that answered.
        failures: Everything else.
    """

    def __init__(self, url: str) -> None:
        self.versions: set[int] = set()
        self.failures: list[object] = []
        self.url = url
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._predict) for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _predict(self) -> None:
        with Client(self.url) as client:
            while not self._ended.wait(0.05):
                try:
                    job = client.predict(PAIR)
                except Exception as error:
                    self.failures.append(error)
                else:
                    self.versions.add(job.model_version)


@pytest.mark.timeout(600)
def test_pool_follows_file_and_registry_without_a_failed_request(
    own_state: dict[str, str], light: Path, wait_until: WaitUntil, tmp_path: Path
) -> None:
    database = tmp_path / "mlruns.db"
    shutil.copy(light / "mlruns.db", database)
    environment = own_state | {
        "ALLOW_PICKLE_MODELS": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        "MODELYARD_SCALE_WAIT_S": "0.0001",  # any job that is seen waiting calls for another replica
        "MODELYARD_SCALE_DOWN_S": "5",
    }
    registry = connect(environment["MLFLOW_TRACKING_URI"])
    file = tmp_path / "modelyard.toml"

    def serve(versions: str, options: str = "") -> None:
        file.write_text(f'[[serve]]\nmodel = "{MODEL}"\nversions = {versions}\n{options}')

    serve('["champion"]')
    with running_up(environment, tmp_path) as printed:

        def wait_for(text: str) -> None:
            wait_until(lambda: text in printed(), timeout_s=START_S, what=f"{text} in {printed()}")

        wait_for("Ctrl-C stops")
        with Load(f"http://127.0.0.1:{environment['MODELYARD_PORT']}") as load:
            wait_until(lambda: load.versions == {2})
            serve('[1, "newest"]')
            wait_for(f"{file}:3: there is no alias newest of {MODEL}")
            wait_for(f"worker-{MODEL}-v1 is ready")
            serve('["champion", 1')
            wait_for("is not TOML")
            serve('["champion", 1]')
            registry.create_model_version(MODEL, registry.get_model_version(MODEL, "1").source)
            registry.set_registered_model_alias(MODEL, "champion", "3")
            wait_for(f"worker-{MODEL}-v3 is ready")
            wait_for(f"worker-{MODEL}-v2 stops: {MODEL}/2 is no longer wanted")
            with Client(load.url) as client:
                client.control("retire", MODEL, 1)
            wait_for(f"{MODEL}/1 is retired and not served")
            wait_for(f"worker-{MODEL}-v1 stops: {MODEL}/1 is no longer wanted")
            with Client(load.url) as client:
                client.scale(MODEL, 3, 2)
                wait_for(f"{MODEL}/3 is scaled to 2")
                wait_for(f"worker-{MODEL}-v3-2 starts: 2 of {MODEL}/3 are wanted")
                serve('["champion"]', "replicas = [1, 2]")
                wait_until(
                    lambda: {row.scaled_to for row in client.workers()} == {None},
                    what="the edited file counts again",
                )
            wait_until(lambda: 3 in load.versions, timeout_s=START_S, what="version 3 answers")
            planned = subprocess.run(
                [sys.executable, "-m", "cli", "plan"],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=START_S,
                check=True,
            )
            wait_for(f"worker-{MODEL}-v3-2 is ready")
        wait_for(f"worker-{MODEL}-v3-2 stops: 1 of {MODEL}/3 are wanted")
        assert f"= keep worker-{MODEL}-v3" in planned.stdout
        assert printed().count(f"worker-{MODEL}-v2 stops") == 1
        assert load.failures == []
    assert "stopped and was restarted" not in printed()


@contextmanager
def tracking_server(database: Path, port: int) -> Iterator[str]:
    """An MLflow server; gives its URL."""
    url = f"http://127.0.0.1:{port}"
    store = ("--backend-store-uri", f"sqlite:///{database}")
    with (database.parent / "mlflow.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1", "--port", str(port), *store],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=database.parent,
            stdout=log,
            stderr=log,
        )
    try:
        yield url
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.timeout(900)
def test_deletions_are_followed_and_a_version_that_cannot_load_replaces_none(
    own_state: dict[str, str],
    light: Path,
    wait_until: WaitUntil,
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    database = tmp_path / "mlruns.db"
    shutil.copy(light / "mlruns.db", database)
    registry = connect(f"sqlite:///{database}")
    with tracking_server(database, free_port()) as url:
        wait_until(lambda: answers(f"{url}/health"), timeout_s=START_S, what="MLflow answers")
        environment = own_state | {"ALLOW_PICKLE_MODELS": "true", "MLFLOW_TRACKING_URI": url}
        with running_up(environment, tmp_path) as printed:

            def wait_for(text: str) -> None:
                wait_until(lambda: text in printed(), timeout_s=START_S, what=f"{text} in {printed()}")

            wait_for("Ctrl-C stops")
            with Load(f"http://127.0.0.1:{environment['MODELYARD_PORT']}") as load:
                wait_until(lambda: load.versions == {2}, what="version 2 answers")
                run = registry.create_run("0").info.run_id
                registry.log_metric(run, "val_accuracy", 0.99)
                registry.create_model_version(MODEL, str(tmp_path / "nothing"), run)
                wait_for(f"worker-{MODEL}-v3 starts: best, latest")
                wait_for(f"worker-{MODEL}-v3 cannot serve and is tried again; no version is replaced by it: ")
                for count in (
                    2,
                    1,
                ):  # a surplus worker stops although another version of the model is not ready
                    with Client(load.url) as client:
                        client.scale(MODEL, 2, count)
                    wait_for(f"worker-{MODEL}-v2-2 {'is ready' if count == 2 else 'stops: 1 of'}")
                registry.delete_model_version(MODEL, "3")
                wait_for(f"worker-{MODEL}-v3 stops: {MODEL}/3 is no longer wanted")
                registry.delete_registered_model_alias(MODEL, "champion")
                registry.delete_model_version(MODEL, "2")
                wait_for(f"worker-{MODEL}-v1 is ready")
                wait_for(f"worker-{MODEL}-v2 stops: {MODEL}/2 is no longer wanted")
                wait_until(lambda: 1 in load.versions, timeout_s=START_S, what="version 1 answers")
                registry.delete_registered_model(MODEL)
                wait_for("the pool stays as it is: there is no version left to serve")
                load.versions.clear()
                wait_until(lambda: load.versions == {1}, what="version 1 goes on answering")
            assert load.failures == []
            assert printed().count("-v3 cannot serve") == 1
        assert "stopped and was restarted" not in printed()
