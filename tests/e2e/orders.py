"""A model of columns with text and a parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema


def register_orders(folder: Path, name: str) -> None:
    """A model of columns with text and a parameter in the pool's registry."""
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text"), ColSpec("long", "n")]),
        outputs=Schema([ColSpec("string", "upper"), ColSpec("long", "double")]),
        params=ParamSchema([ParamSpec("factor", DataType.long, 2)]),
    )

    class Answers(mlflow.pyfunc.PythonModel):  # within a function, so that it is pickled by value
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            doubled = model_input["n"] * params["factor"]
            return pd.DataFrame({"upper": model_input["text"].str.upper(), "double": doubled})

    mlflow.pyfunc.save_model(
        folder / name.lower(), python_model=Answers(), signature=signature, pip_requirements=["pandas"]
    )
    registry = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    registry.create_registered_model(name)
    registry.create_model_version(name, str(folder / name.lower()))
