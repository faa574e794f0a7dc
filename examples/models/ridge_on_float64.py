"""A scikit-learn regression on a tensor of float64."""

import mlflow
import numpy as np
from mlflow.models import infer_signature
from show import show
from sklearn.linear_model import Ridge

NAME = "Ridge"
BODY = {"inputs": [[1.5, 2.5, 3.0], [0.1, 0.2, 0.3]]}

samples = np.arange(12.0).reshape(4, 3)
model = Ridge().fit(samples, [0.1, 0.7, 0.2, 0.3])
mlflow.sklearn.log_model(
    model,
    name="model",
    signature=infer_signature(samples, model.predict(samples)),
    serialization_format="skops",
    pip_requirements=["scikit-learn", "skops"],
    registered_model_name=NAME,
)
show(NAME, BODY)
