"""The way of a user's own model: the example's script in an empty folder, then a worker there, without any setting."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelyard import Client
from tests.conftest import RedisServer, WaitUntil
from tests.e2e.conftest import Pool

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.mark.timeout(300)
def test_the_example_registers_a_model_in_an_empty_folder_that_a_worker_there_serves(
    redis_server: RedisServer,
    free_port: Callable[[], int],
    wait_until: WaitUntil,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = os.environ.copy()
    environment.pop("MLFLOW_TRACKING_URI", None)
    shutil.copy(EXAMPLE, tmp_path)
    subprocess.run([sys.executable, EXAMPLE.name], cwd=tmp_path, env=environment, check=True, timeout=200)
    assert (tmp_path / "mlflow.db").is_file()
    pool = Pool(tmp_path, redis_server.url, free_port, wait_until, {"MLFLOW_TRACKING_URI": ""})
    try:
        pool.start("workers", MODEL_NAME="My_Model", MODEL_VERSION="1")
        url = pool.controller()
        pool.wait_for_workers(url, 1)
        with Client(url) as client:
            job = client.predict(np.zeros((1, 64), np.float32))
            assert job.model_name == "My_Model"
            assert job.val_accuracy is not None
            assert job.val_accuracy > 0.8
            assert np.array(job.predictions[0].scores, float).sum() == pytest.approx(1, abs=1e-3)
        monkeypatch.setenv("MODELYARD_URL", url)
        show = runpy.run_path(str(EXAMPLE.parent / "models" / "show.py"))["show"]
        show("My_Model", {"inputs": [[0.0] * 64]})
        assert '"status":"succeeded"' in capsys.readouterr().out
    finally:
        pool.close()
