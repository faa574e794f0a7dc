"""A tensor of float64 whose dimensions are all free."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Free_Dimensions"
BODY = {"inputs": [[0.1, 0.2], [0.3, 0.4]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input.sum(axis=1)


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, -1))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
