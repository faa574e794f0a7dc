"""A model whose answers may be NaN, which JSON shows as null."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Logarithm"
BODY = {"inputs": [[1.0, -1.0], [2.0, 3.0]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return np.log(model_input)


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 2))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true MODELYARD_ALLOW_NON_FINITE=true")
