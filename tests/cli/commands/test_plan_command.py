"""`modelyard plan`: what would start, for people and programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.commands.plan_command import command
from training.inventory import connect


def test_a_program_gets_the_plan_as_json(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    registry = connect(f"sqlite:///{tmp_path}/mlruns.db")
    registry.create_registered_model("Digits")
    for _ in range(2):
        registry.create_model_version("Digits", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns.db",
        "MODELYARD_STATE_DIR": str(tmp_path),
    }
    done = CliRunner().invoke(command, ["--model", "Digits:2", "--json"], env=environment)
    assert done.exit_code == 0, done.output
    worker = {"model_name": "Digits", "model_version": 2, "worker": "worker-Digits-v2", "reason": "version 2"}
    assert json.loads(done.stdout) == {
        "pool_runs": False,
        "start": [worker],
        "stop": [],
        "keep": [],
        "left_out": [],
    }


def test_a_plan_without_a_choice_says_how_many_versions_it_has_at_most(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    registry = connect(f"sqlite:///{tmp_path}/mlruns.db")
    for number in range(9):
        registry.create_registered_model(f"Model{number}")
        registry.create_model_version(f"Model{number}", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns.db",
        "MODELYARD_STATE_DIR": str(tmp_path),
    }
    done = CliRunner().invoke(command, env=environment)
    assert "serves at most 8 versions; not served: Model8/1 (latest); name them with --model" in done.output
