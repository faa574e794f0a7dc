"""LightGBM on columns with missing values."""

import lightgbm
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from show import show

NAME = "LightGBM"
BODY = {"dataframe_split": {"columns": ["a", "n"], "data": [[1.0, 2], [None, 3]]}}

frame = pd.DataFrame({"a": [1.0, None, 3.0, 4.0] * 8, "n": np.arange(32)})
data = lightgbm.Dataset(frame, label=np.array([0.1, 0.2, 0.3, 0.4] * 8))
booster = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1}, data, num_boost_round=3)
mlflow.lightgbm.log_model(
    booster,  # of an estimator of LightGBM's scikit-learn interface: its `booster_`
    name="model",
    signature=infer_signature(frame, booster.predict(frame)),
    pip_requirements=["lightgbm"],
    registered_model_name=NAME,
)
show(NAME, BODY)
