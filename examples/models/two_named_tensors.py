"""Two named tensors in, one of them with a free length; a dictionary of arrays out."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from show import show

NAME = "Two_Tensors"
BODY = {"inputs": {"ids": [[1, 2, 3], [4, 5, 6]], "mask": [[1.0, 0.0], [0.5, 0.25]]}}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return {"sum": model_input["ids"].sum(axis=1), "mask": model_input["mask"] * 0.5}


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(
        inputs=Schema(
            [TensorSpec(np.dtype("int64"), (-1, -1), "ids"), TensorSpec(np.dtype("float64"), (-1, 2), "mask")]
        )
    ),
    pip_requirements=["numpy"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
