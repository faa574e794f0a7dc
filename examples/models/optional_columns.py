"""Columns that a request may leave out."""

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from show import show

NAME = "Optional"
BODY = {"dataframe_records": [{"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input.sum(axis=1)


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(
        inputs=Schema(
            [
                ColSpec("double", "a"),
                ColSpec("double", "b", required=False),
                ColSpec("long", "c", required=False),
            ]
        )
    ),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
