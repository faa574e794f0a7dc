"""A model that answers all rows of a request together, so that its jobs share no batch."""

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from show import show

NAME = "Mean"
BODY = {"dataframe_records": [{"a": 1.0}, {"a": 2.0}]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return {"mean": float(model_input["a"].mean())}


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([ColSpec("double", "a")])),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
