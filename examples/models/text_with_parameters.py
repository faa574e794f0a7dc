"""A Python model that takes text and parameters, and answers a dictionary per text."""

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from show import show

NAME = "Text"
BODY = {"dataframe_records": [{"text": "a"}, {"text": "b"}], "params": {"top_k": 3, "words": ["x", "y"]}}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [
            {"text": text.upper(), "k": params["top_k"], "words": params["words"]}
            for text in model_input["text"]
        ]


params = [ParamSpec("top_k", DataType.long, 2), ParamSpec("words", DataType.string, ["a"], (-1,))]
mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=ModelSignature(inputs=Schema([ColSpec("string", "text")]), params=ParamSchema(params)),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
