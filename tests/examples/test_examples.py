"""The examples as users run them: each trains a model in one folder, and the notebook's pool serves all of them."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pytest

from modelyard import Client

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("scikit_learn", "xgboost_classifier", "text", "image", "own_model")
MOST_LINES = 39


@pytest.fixture
def folder(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, whose registry lies where MLflow puts it without any setting."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MODELYARD_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(None)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("examples", str(tmp_path / "artifacts")))
    yield tmp_path
    mlflow.set_tracking_uri(before)


@pytest.fixture
def url(folder: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the controller of the notebook's pool listens."""
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as state_dir:
        port = free_port()
        monkeypatch.setenv("MODELYARD_STATE_DIR", state_dir)
        monkeypatch.setenv("MODELYARD_PORT", str(port))
        monkeypatch.setenv("MODELYARD_ALLOW_PICKLE_MODELS", "true")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        yield f"http://127.0.0.1:{port}"


class Notebook:
    """The notebook's cells, run in this process: they are plain Python, and the libraries are at hand."""

    def __init__(self) -> None:
        self.cells: list[Any] = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
        self.names: dict[str, Any] = {}

    def run(self, *ids: str) -> None:
        for each in ids:
            [cell] = [cell for cell in self.cells if cell["id"] == each]
            exec(compile("".join(cell["source"]), each, "exec"), self.names)


def run_script(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a script as a user does, in this process, which has the libraries at hand.

    Returns:
        The last line that it printed.
    """
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_every_example_trains_a_model_that_the_notebooks_pool_serves(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib.use("agg")
    notebook = Notebook()
    for name in SCRIPTS:
        assert "modelyard up --model " in run_script(name, capsys), name
    notebook.run("train", "serve")
    try:
        monkeypatch.setenv("MODELYARD_URL", url)
        answers = {name: run_script(name, capsys, "predict") for name in SCRIPTS}
        show = runpy.run_path(str(EXAMPLES / "models" / "show.py"))["show"]
        show("My_Model", {"inputs": [[0.0] * 64]})
        assert '"status":"succeeded"' in capsys.readouterr().out
        with Client() as client:
            served = {row.model_name for row in client.workers()}
        notebook.run("predict", "measure", "plot")
    finally:
        notebook.run("stop")
    plt.close(notebook.names["figure"])
    assert served == {"Wine", "Tumours", "Topics", "Digits", "My_Model", "Quickstart"}
    assert {number: len(jobs) for number, jobs in notebook.names["jobs"].items()} == {1: 60, 2: 60}
    given, expected = answers["xgboost_classifier"].split(" expected ")
    assert given == expected
    assert [list(each) for each in ast.literal_eval(answers["text"])] == [
        ["delivery", "billing"],
        ["billing", "delivery"],
    ]
    assert answers["image"] == "[7]"
    assert answers["own_model"] == "[6 7 8] expected [6, 7, 8]"
    assert np.isfinite(np.array(answers["scikit_learn"].strip("[ ]").split(), float)).all()


def test_an_example_is_short_and_the_notebook_is_committed_without_outputs() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in SCRIPTS
        assert len(path.read_text().splitlines()) <= MOST_LINES, path.name
    assert not [each for each in Notebook().cells if each.get("outputs") or each.get("execution_count")]
