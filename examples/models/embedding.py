"""A Python model that answers an embedding, 384 numbers, per sample."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Embedding"
BODY = {"inputs": [[1.5, 2.5, 3.0], [0.1, 0.2, 0.3]]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input @ np.linspace(-1, 1, 3 * 384, dtype=np.float32).reshape(3, 384)


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3))])),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
