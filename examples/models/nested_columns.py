"""Columns of lists and objects, such as the messages of a chat."""

import mlflow
from mlflow.models import infer_signature
from show import show

NAME = "Messages"
rows = [
    {"messages": [{"role": "user", "content": "hi"}]},
    {"messages": [{"role": "system", "content": "ho"}] * 2},
]
BODY = {"dataframe_records": rows}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return [{"n": len(each), "first": each[0]["role"]} for each in model_input["messages"]]


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    signature=infer_signature(rows),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
