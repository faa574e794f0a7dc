"""A scikit-learn classifier that answers text."""

import mlflow
import numpy as np
from mlflow.models import infer_signature
from show import show
from sklearn.tree import DecisionTreeClassifier

NAME = "Levels"
BODY = {"inputs": [[0.5, 1.0], [1.5, 1.0]]}

samples = np.array([[0.0, 1.0], [0.9, 1.0], [1.1, 1.0], [2.0, 1.0]])
model = DecisionTreeClassifier().fit(samples, ["low", "low", "high", "high"])
mlflow.sklearn.log_model(
    model,
    name="model",
    signature=infer_signature(samples, model.predict(samples)),
    metadata={"modelyard.task": "classification"},
    serialization_format="cloudpickle",
    pip_requirements=["scikit-learn"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
