"""A Python model without any signature: requests are read as MLflow reads them, one job a batch."""

import mlflow
import pandas as pd
from show import show

NAME = "No_Signature"
BODY = {"dataframe_records": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return pd.DataFrame({"n": model_input["a"] * 2, "t": model_input["b"] + "!"})


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    pip_requirements=["pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
