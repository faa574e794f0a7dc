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

import httpx
import mlflow
import pytest
import redis
from mlflow.entities.webhook import WebhookEvent

from app.redis import keys
from app.settings import WorkerSettings
from tests.conftest import WaitUntil
from tests.pool_samples import RedisServer
from workers.model_lookup import Aliases, ModelVersion, look_up_aliases
from workers.process.alias_watch import AliasWatch

MODEL = "Moved"
SOON_S, NEVER_S = 0.05, 3600.0
SECRET = "of MLflow's webhook"
MOVED = WebhookEvent.from_str("model_version_alias.created")
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


@pytest.fixture
def controller(redis_server: RedisServer, free_port: Callable[[], int]) -> Iterator[str]:
    """URL of a controller that starts, and takes MLflow's webhooks."""
    port = free_port()
    own = {
        "REDIS_URL": redis_server.url,
        "MODELYARD_REGISTRY_WEBHOOK_SECRET": SECRET,
        "MODELYARD_LAME_DUCK_S": "0",
    }
    command = [sys.executable, "-m", "cli", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=os.environ | own, stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@contextmanager
def watching(
    uri: str, first: dict[str, int], read_at_s: float = 1.0, pause_s: float = SOON_S, redis_url: str = ""
) -> Iterator[Queue[dict[str, int]]]:
    readings: Queue[dict[str, int]] = Queue()
    found = ModelVersion(MODEL, 1, "", "", {}, aliases=Aliases(first), read_at_s=read_at_s)
    settings = WorkerSettings(
        mlflow_tracking_uri=uri, model_name=MODEL, model_version="1", redis_url=redis_url
    )
    watch = AliasWatch(settings, found, lambda aliases, _: readings.put(aliases.versions), pause_s)
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


def test_a_moved_alias_is_read_from_an_mlflow_server_once_it_answers_and_at_once_on_its_webhook(
    client: mlflow.MlflowClient,
    free_port: Callable[[], int],
    controller: str,
    redis_server: RedisServer,
    wait_until: WaitUntil,
) -> None:
    port = free_port()
    with watching(f"http://127.0.0.1:{port}", {"champion": 1}) as readings:
        assert readings.get(timeout=5) == {"champion": 1}
        client.set_registered_model_alias(MODEL, "champion", "2")
        # A process of its own: MLflow's server sets variables that its process passes on.
        environment = os.environ | {
            "_MLFLOW_SERVER_FILE_STORE": client.tracking_uri,
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        }
        command = [sys.executable, "-c", SERVER, str(port)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
            try:
                awaited(readings, {"champion": 2})
                is_read_at_once_on_a_webhook(f"http://127.0.0.1:{port}", controller, redis_server, wait_until)
            finally:
                server.kill()


def is_read_at_once_on_a_webhook(
    mlflow_url: str, controller: str, redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    registry, hook = mlflow.MlflowClient(mlflow_url), f"{controller}/registry/webhook"
    wait_until(lambda: answers(f"{controller}/healthz"), timeout_s=60, what="the controller answers")
    registry.create_webhook("forged", hook, [MOVED], secret="another")
    registry.create_webhook("pool", hook, [MOVED], secret=SECRET)
    with (
        watching(mlflow_url, {"champion": 2}, 0, NEVER_S, redis_server.url) as readings,
        redis.Redis.from_url(redis_server.url) as connection,
    ):
        wait_until(
            lambda: connection.pubsub_numsub(keys.REGISTRY_CHANNEL)[0][1], what="the watch is subscribed"
        )
        registry.set_registered_model_alias(MODEL, "champion", "1")
        awaited(readings, {"champion": 1})
    wait_until(
        lambda: 'code="registry_webhook_invalid"' in httpx.get(f"{controller}/metrics").text,
        what="the webhook with another secret is refused",
    )


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False
