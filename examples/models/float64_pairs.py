"""Pairs of float64 in, one float64 out, exact to the last digit."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Pairs"
BODY = {"inputs": [[0.1, 3], [0.7, 7]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input[:, :1] * model_input[:, 1:]


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 2))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
