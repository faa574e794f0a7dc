"""A pickled scikit-learn model without a signature."""

import mlflow
from show import show
from sklearn.linear_model import Ridge

NAME = "Pickled"
BODY = {"inputs": [[1.5, 2.5], [0.1, 0.2]]}

mlflow.sklearn.log_model(
    Ridge().fit([[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]], [0.1, 0.7, 0.2]),
    name="model",
    serialization_format="cloudpickle",
    pip_requirements=["scikit-learn"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
