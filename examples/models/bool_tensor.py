"""A tensor of booleans."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Booleans"
BODY = {"inputs": [[True, False], [True, True]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return ~model_input


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("bool"), (-1, 2))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
