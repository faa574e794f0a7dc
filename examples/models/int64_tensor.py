"""A tensor of int64, answered exactly: JSON numbers beyond 2^53 keep their digits."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Int64"
BODY = {"inputs": [[1, 2], [3, 4]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input + 2**60


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("int64"), (-1, 2))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
