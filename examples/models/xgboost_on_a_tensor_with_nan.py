"""XGBoost on a tensor with missing values: `null` in JSON is NaN."""

import mlflow
import numpy as np
import xgboost
from mlflow.models import infer_signature
from show import show

NAME = "XGBoost_Tensor"
BODY = {"inputs": [[1.0, 2.0], [None, 3.0]]}

samples = np.array([[1.0, 0.0], [np.nan, 1.0], [3.0, 2.0], [4.0, 3.0]] * 8)
model = xgboost.XGBRegressor(n_estimators=3).fit(samples, [0.1, 0.2, 0.3, 0.4] * 8)
mlflow.xgboost.log_model(
    model,
    name="model",
    signature=infer_signature(samples, model.predict(samples)),
    pip_requirements=["xgboost"],
    registered_model_name=NAME,
)
show(NAME, BODY)
