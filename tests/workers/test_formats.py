"""Models in formats without code: loaded without any setting; `modelyard check` says so, and what else it found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from app.server_errors import ModelNotAllowedError
from app.settings import WorkerSettings
from cli.commands.check_command import command
from workers import model
from workers.model_lookup import ModelVersion, look_up, read_description
from workers.warm_up import LoadedModel

ALLOWED = "MODELYARD_ALLOW_PICKLE_MODELS"


def write(folder: Path, estimator: object, **conf: Any) -> str:
    """A scikit-learn model as MLflow saves one in the format skops, with a signature of pairs."""
    import skops.io  # takes seconds, which every process of the test run would spend

    skops.io.dump(estimator, folder / "model.skops")
    description = {
        "flavors": {
            "python_function": {"loader_module": "mlflow.sklearn", "model_path": "model.skops"},
            "sklearn": {"pickled_model": "model.skops", "serialization_format": "skops", **conf},
        },
        "signature": {
            "inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]'
        },
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    return str(folder)


def fitted() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [3, 3, 8, 8])


def load(folder: str) -> LoadedModel:
    described = read_description(folder)
    found = ModelVersion("Plain", 1, "", folder, described.flavors, described.signature)
    return model.load(found, WorkerSettings(allow_pickle_models=False))


def test_a_skops_model_loads_without_any_setting(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, fitted()))
    assert loaded.predict(np.array([[0.0, 0.5], [1.0, 0.5]])).tolist() == [3, 8]


def test_a_skops_model_with_types_of_its_own_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer

    sprung = tmp_path / "sprung"
    trap = FunctionTransformer(os.mkdir, kw_args={"path": str(sprung)})
    with pytest.raises(ModelNotAllowedError, match=f"types that skops does not trust.*{ALLOWED}=true"):
        load(write(tmp_path, trap))
    with pytest.raises(ModelNotAllowedError, match="trusts types chosen by its author"):
        load(write(tmp_path, trap, skops_trusted_types=["posix.mkdir"]))
    assert not sprung.exists()


def test_check_says_what_a_model_is_and_that_it_would_be_served(tmp_path: Path, registry: str) -> None:
    done = CliRunner().invoke(command, [write(tmp_path, fitted())], env={"MLFLOW_TRACKING_URI": registry})
    assert done.exit_code == 0, done.output
    for part in (
        "python_function, sklearn",
        "model.skops, without running its author's code",
        "float64",
        "would be served: yes",
    ):
        assert part in done.output


def test_check_names_every_obstacle_of_a_registered_version(registry: str) -> None:
    done = CliRunner().invoke(command, ["models:/Scikit/2"], env={"MLFLOW_TRACKING_URI": registry})
    assert done.exit_code == 1, done.output
    for part in (
        "0.75",
        "would be served: no",
        f"{ALLOWED}=true",
        "[model_not_allowed]",
        "tensor of complex64",
    ):
        assert part in done.output
    done = CliRunner().invoke(
        command, ["models:/Scikit@champion"], env={"MLFLOW_TRACKING_URI": registry, ALLOWED: "true"}
    )
    assert done.exit_code == 0, done.output
    assert "is pickled (" in done.output
    done = CliRunner().invoke(command, ["models:/Scikit/2", "--json"], env={"MLFLOW_TRACKING_URI": registry})
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert (said["model"], said["would_be_served"]) == ("models:/Scikit/2", False)
    assert "model_not_allowed" in {each["code"] for each in said["obstacles"]}


def test_a_worker_is_told_of_both_obstacles_at_once(registry: str) -> None:
    found = look_up(registry, "Scikit", "2")
    with pytest.raises(ModelNotAllowedError, match=f"{ALLOWED}=true. Besides, .*tensor of complex64"):
        model.load(found, WorkerSettings(allow_pickle_models=False))
