"""A Python model whose type hints say what it takes: a list, whose items MLflow checks and converts."""

import mlflow
import pydantic
from show import show

NAME = "Type_Hints"
BODY = {"inputs": [{"customer": 1, "items": ["tea", "milk"]}, {"customer": 2, "items": [], "note": "gift"}]}


class Order(pydantic.BaseModel):
    customer: int
    items: list[str]
    note: str | None = None


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[Order]) -> list[dict[str, str]]:
        return [{"label": f"{len(order.items)} for {order.customer}"} for order in model_input]


mlflow.pyfunc.log_model(
    name="model",
    python_model=Model(),
    input_example=BODY["inputs"][:1],
    pip_requirements=["pydantic"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
