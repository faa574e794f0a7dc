"""`modelyard train --missing` beside a real MLflow tracking server: when there is nothing to do, that is cheap."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from training.inventory import quickly_known_archs

from .conftest import Trained

ASK = """
import sys
from click.testing import CliRunner
from training.command import command
line = ["--arch", "mlp", "--arch", "cnn", "--missing", "--model-name", "Digits"]
done = CliRunner().invoke(command, line, catch_exceptions=False)
print(done.output, sorted({"mlflow", "torch", "sklearn"} & sys.modules.keys()))
"""


@pytest.fixture
def tracking_server(
    trained: Trained, free_port: Callable[[], int], wait_until: Callable[..., None], tmp_path: Path
) -> Iterator[str]:
    port = free_port()
    line = ["--port", str(port), "--workers", "1", "--backend-store-uri", trained.tracking_uri]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow starts uvicorn from it
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *line],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PATH": path,
                "MLFLOW_TRACKING_URI": "",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            cwd=tmp_path,
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
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(200)
def test_missing_asks_a_tracking_server_without_importing_mlflow(
    tracking_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout == "Digits has a version of each architecture; nothing to train\n []\n"
    assert quickly_known_archs(tracking_server, "Digits") == {"mlp", "cnn"}
    assert quickly_known_archs(f"{tracking_server}/", "Another") == set()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a login that only MLflow's client knows how to give")
    assert quickly_known_archs(tracking_server, "Digits") == set()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "sqlite:///nowhere.db", "http://[", ""])
def test_a_registry_that_cannot_be_asked_quickly_is_left_to_mlflow(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert quickly_known_archs(uri, "Digits") == set()
