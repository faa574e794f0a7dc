"""`modelyard train --missing` beside a real MLflow tracking server: when there is nothing to do, that is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

from training.inventory import quickly_known_archs

from .conftest import StartMlflow, Trained

ASK = """
import sys
from click.testing import CliRunner
from training.command import command
line = ["--arch", "mlp", "--arch", "cnn", "--missing", "--model-name", "Digits"]
done = CliRunner().invoke(command, line, catch_exceptions=False)
print(done.output, sorted({"mlflow", "torch", "sklearn"} & sys.modules.keys()))
"""


@pytest.fixture
def tracking_server(trained: Trained, start_mlflow: StartMlflow) -> str:
    """URL of a tracking server of the registry."""
    variables = {"MLFLOW_TRACKING_URI": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    line = ("server", "--workers", "1", "--backend-store-uri", trained.tracking_uri)
    return start_mlflow(*line, health="/health", **variables)


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
