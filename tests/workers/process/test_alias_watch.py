"""Aliases as a serving worker reads them again, from MLflow's own database and its own server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import mlflow
import pytest

from app.settings import WorkerSettings
from workers.model_lookup import Aliases, ModelVersion, look_up_aliases
from workers.process.alias_watch import AliasWatch

MODEL = "Moved"
SOON_S = 0.05
SERVER = """
import sys
from mlflow.server import app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), app)
"""


@pytest.fixture
def client(empty_database: Path, tmp_path: Path) -> Iterator[mlflow.MlflowClient]:
    """A registry of one model with two versions; version 1 is the champion."""
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    client.create_registered_model(MODEL)
    for _ in range(2):
        client.create_model_version(MODEL, str(tmp_path))
    client.set_registered_model_alias(MODEL, "champion", "1")
    before = mlflow.get_tracking_uri()
    yield client
    mlflow.set_tracking_uri(before)  # which look-ups in this process change


@contextmanager
def watching(uri: str, first: dict[str, int], read_at_s: float = 1.0) -> Iterator[Queue[dict[str, int]]]:
    readings: Queue[dict[str, int]] = Queue()
    found = ModelVersion(MODEL, 1, "", "", {}, aliases=Aliases(first), read_at_s=read_at_s)
    settings = WorkerSettings(mlflow_tracking_uri=uri, model_name=MODEL, model_version="1")
    watch = AliasWatch(settings, found, lambda aliases, _: readings.put(aliases.versions), SOON_S)
    watch.start()
    yield readings
    watch.close()


def awaited(readings: Queue[dict[str, int]], expected: dict[str, int]) -> None:
    while readings.get(timeout=60) != expected:
        pass


def test_a_moved_alias_is_read_from_the_database_that_holds_it(client: mlflow.MlflowClient) -> None:
    first = look_up_aliases(client.tracking_uri, MODEL).versions
    assert first == {"champion": 1}
    with watching(client.tracking_uri, first) as readings:
        assert readings.get(timeout=5) == first
        client.set_registered_model_alias(MODEL, "champion", "2")
        awaited(readings, {"champion": 2})


def test_a_moved_alias_is_read_from_an_mlflow_server_once_it_answers(
    client: mlflow.MlflowClient, free_port: Callable[[], int]
) -> None:
    port = free_port()
    with watching(f"http://127.0.0.1:{port}", {"champion": 1}) as readings:
        assert readings.get(timeout=5) == {"champion": 1}
        client.set_registered_model_alias(MODEL, "champion", "2")
        # A process of its own: MLflow's server sets variables that its process passes on.
        environment = os.environ | {"_MLFLOW_SERVER_FILE_STORE": client.tracking_uri}
        command = [sys.executable, "-c", SERVER, str(port)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
            try:
                awaited(readings, {"champion": 2})
            finally:
                server.kill()
