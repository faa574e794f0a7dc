"""XGBoost on columns with missing values."""

import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from show import show

NAME = "XGBoost"
BODY = {"dataframe_split": {"columns": ["a", "n"], "data": [[1.0, 2], [None, 3]]}}

frame = pd.DataFrame({"a": [1.0, None, 3.0, 4.0] * 8, "n": np.arange(32)})
model = xgboost.XGBRegressor(n_estimators=3).fit(frame, [0.1, 0.2, 0.3, 0.4] * 8)
mlflow.xgboost.log_model(
    model,
    name="model",
    signature=infer_signature(frame, model.predict(frame)),
    pip_requirements=["xgboost"],
    registered_model_name=NAME,
)
show(NAME, BODY)
