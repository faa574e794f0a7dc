"""MLflow's own server serves the versions as they are."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from modelyard.digits import load_digits_28
from training.local_inference import load, scores

from .conftest import Trained


@pytest.fixture
def mlflow_server(
    trained: Trained, free_port: Callable[[], int], wait_until: Callable[..., None], tmp_path: Path
) -> Iterator[str]:
    port = free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow starts uvicorn from it
    line = ["-m", "models:/Digits/1", "--env-manager", "local", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *line],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: process.poll() is not None or answers(url), timeout_s=120, what="the server answers"
        )
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping").status_code == 200
    except httpx.TransportError:
        return False


def test_mlflow_models_serve_answers_the_same_scores(mlflow_server: str, trained: Trained) -> None:
    images = load_digits_28()[0][:3]
    reply = httpx.post(f"{mlflow_server}/invocations", json={"inputs": images.tolist()}, timeout=30)
    assert reply.status_code == 200, reply.text
    answer = np.array(reply.json()["predictions"])
    np.testing.assert_allclose(
        answer, scores(load("models:/Digits/1", trained.tracking_uri), images), atol=1e-5
    )
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
