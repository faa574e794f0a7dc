"""Which model files are judged to run no code, and what is said of the others: a table of descriptions."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.model_files import loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.skops", "sub/model.skops"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("schema.json", "{}")
    for name in ("model.ubj", "model.json", "model.lgb", "model.onnx", "model.pkl"):
        (tmp_path / name).touch()
    return tmp_path


def sklearn(file: str = "model.skops", **conf: Any) -> dict[str, Any]:
    pyfunc = {"loader_module": "mlflow.sklearn", "model_path": file}
    return {
        "python_function": pyfunc,
        "sklearn": {"pickled_model": file, "serialization_format": "skops", **conf},
    }


def library(name: str, **conf: Any) -> dict[str, Any]:
    return {"python_function": {"loader_module": f"mlflow.{name}"}, name: conf}


@pytest.mark.parametrize(
    ("flavors", "kind", "file"),
    [
        (sklearn(), "skops", "model.skops"),
        (
            library("xgboost", data="model.ubj", model_class="xgboost.sklearn.XGBClassifier"),
            "library",
            "model.ubj",
        ),
        (library("xgboost", data="model.json"), "library", "model.json"),
        (library("lightgbm", data="model.lgb", model_class="lightgbm.basic.Booster"), "library", "model.lgb"),
        (library("onnx", data="model.onnx", providers=["CPUExecutionProvider"]), "onnx", "model.onnx"),
    ],
)
def test_formats_without_code_are_known(folder: Path, flavors: dict[str, Any], kind: str, file: str) -> None:
    found = loading(flavors, folder)
    assert (found.kind, found.file, found.reason) == (kind, file, "")


@pytest.mark.parametrize(
    ("flavors", "reason"),
    [
        (
            sklearn("model.pkl", serialization_format="cloudpickle"),
            "is pickled (model.pkl, by scikit-learn's cloudpickle)",
        ),
        (sklearn("model.pkl"), "says that model.pkl is skops, but it is not"),
        (
            sklearn(skops_trusted_types=["os.system"]),
            "trusts types chosen by its author (model.skops: ['os.system'])",
        ),
        # MLflow would go by a second description, in the subfolder.
        (sklearn("sub/model.skops"), "is loaded from sub/model.skops, which is outside the top folder"),
        (sklearn(code="code"), "brings Python code of its own"),
        (
            library("xgboost", data="model.ubj", model_class="subprocess.Popen"),
            "by the class subprocess.Popen, which is not",
        ),
        (library("xgboost", data="../model.ubj"), "not in its top folder"),
        (
            library("lightgbm", data="model.pkl", model_class="lightgbm.LGBMRegressor"),
            "is a lightgbm.LGBMRegressor pickled (model.pkl; log its booster_",
        ),
        (
            library("onnx", data="model.onnx", providers=[["QNN", {"backend_path": "x.so"}]]),
            "may load libraries",
        ),
        (
            library("onnx", data="model.onnx", onnx_session_options={"extra_session_config": {}, "x": 1}),
            "may load",
        ),
        (
            {"python_function": {"loader_module": "mlflow.pyfunc.model", "python_model": "p.pkl"}},
            "loads mlflow.pyfunc.model",
        ),
        (
            {"python_function": {"loader_module": "os", "data": "model.skops"}, "sklearn": {}},
            "loads model.skops by os",
        ),
        ({}, "no flavor"),
    ],
)
def test_what_would_run_code_is_refused_with_its_file_and_the_reason(
    folder: Path, flavors: dict[str, Any], reason: str
) -> None:
    found = loading(flavors, folder)
    assert found.kind == "code"
    assert reason in found.reason
