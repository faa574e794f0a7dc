"""The kinds of models that people keep in MLflow: the scripts in `examples/models`, and what each must become."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlflow
from mlflow import MlflowClient

SCRIPTS = Path(__file__).parents[2] / "examples" / "models"
EXPERIMENT = "kinds"


@dataclass(frozen=True)
class Kind:
    """The model of a script.

    Attributes:
        contract: Kind of its contract.
        merges: Whether jobs share a batch.
        serves_in_mlflow: Whether MLflow's own scoring server can serve it.
        settings: What its script says that its worker needs.
        library: Optional package without which it cannot run.
        labels: Names of its classes.
    """

    contract: str
    merges: bool = True
    serves_in_mlflow: bool = True
    settings: tuple[str, ...] = ()
    library: str = ""
    labels: tuple[str, ...] = ()


ALL_SETTINGS = ("MODELYARD_ALLOW_PICKLE_MODELS", "MODELYARD_ALLOW_NON_FINITE")
PICKLED = ALL_SETTINGS[:1]
KINDS = {
    "pipeline_on_mixed_columns": Kind("columns", settings=PICKLED),
    "probabilities": Kind("columns", labels=("setosa", "versicolor", "virginica")),
    "string_labels": Kind("tensors", settings=PICKLED, labels=("high", "low")),
    "ridge_on_float64": Kind("tensor"),
    "lightgbm_with_nulls": Kind("columns", library="lightgbm"),
    "xgboost_with_nulls": Kind("columns", library="xgboost"),
    "xgboost_on_a_tensor_with_nan": Kind("tensors", library="xgboost"),
    "onnx_with_two_inputs": Kind("tensors", library="onnxruntime"),
    "sentence_embeddings": Kind("columns", settings=PICKLED, library="sentence_transformers"),
    "text_with_parameters": Kind("columns", settings=PICKLED),
    "two_named_tensors": Kind("tensors", settings=PICKLED),
    "pt2_classifier": Kind("tensor"),
    "pytorch_with_two_inputs": Kind("tensors", serves_in_mlflow=False),
    "dictionary_of_heads": Kind("tensors", serves_in_mlflow=False),
    "tuple_of_heads": Kind("tensors", serves_in_mlflow=False),
    "segmentation": Kind("tensors"),
    "embedding": Kind("tensor", settings=PICKLED),
    "one_named_tensor": Kind("tensors", settings=PICKLED),
    "png_column": Kind("columns", settings=PICKLED),
    "free_dimensions": Kind("tensors", settings=PICKLED),
    "int64_tensor": Kind("tensor", settings=PICKLED),
    "uint8_tensor": Kind("tensor", settings=PICKLED),
    "bool_tensor": Kind("tensors", settings=PICKLED),
    "float64_pairs": Kind("tensor", settings=PICKLED),
    "answers_nan": Kind("tensor", settings=ALL_SETTINGS),
    "optional_columns": Kind("columns", settings=PICKLED),
    "nested_columns": Kind("columns", settings=PICKLED),
    "one_answer_for_all_rows": Kind("columns", merges=False, settings=PICKLED),
    "pickled_without_signature": Kind("any", merges=False, settings=PICKLED),
    "no_signature": Kind("any", merges=False, settings=PICKLED),
    "type_hints": Kind("any", merges=False, settings=PICKLED),
}


@dataclass(frozen=True)
class Registered:
    """A kind's model in the registry.

    Attributes:
        body: A request with several rows.
        path: Folder of its files.
    """

    name: str
    body: Any
    path: str


def is_installed(script: str) -> bool:
    library = KINDS[script].library
    return not library or find_spec(library) is not None


def new_registry(empty_database: Path, folder: Path) -> str:
    """A registry without models, in this folder.

    Returns:
        Its tracking URI.
    """
    shutil.copy(empty_database, folder / "mlruns.db")
    uri = f"sqlite:///{folder}/mlruns.db"
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    return uri


def register(script: str, registry: str) -> Registered:
    """Run a script as a user does, in this process, which has the libraries at hand."""
    with (
        warnings.catch_warnings(),
        patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
        patch.object(sys, "path", [str(SCRIPTS), *sys.path]),
    ):
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(registry)
        mlflow.set_experiment(EXPERIMENT)
        ran = runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    path = mlflow.artifacts.download_artifacts(f"models:/{ran['NAME']}/1")
    return Registered(ran["NAME"], ran["BODY"], path)
