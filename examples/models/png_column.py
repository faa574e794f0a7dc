"""A column of files, base64 in JSON and bytes for the model."""

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from show import show

NAME = "Files"
BODY = {"dataframe_split": {"columns": ["image"], "data": [["iVBORw0KGgo="], ["iVBORw0KGgoAAAA="]]}}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return [len(image) for image in model_input["image"]]


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([ColSpec("binary", "image")])),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
