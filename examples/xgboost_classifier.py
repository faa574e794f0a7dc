"""XGBoost on a table with missing values: run it to train, and with the argument `predict` to call it."""

import sys

import mlflow
import numpy as np
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from xgboost import XGBClassifier

from modelyard import Client

cases = load_breast_cancer(as_frame=True)
table = cases.data.mask(np.random.default_rng(0).random(cases.data.shape) < 0.1)  # a tenth of it is missing
train_x, val_x, train_y, val_y = train_test_split(table, cases.target, random_state=0)

if "predict" not in sys.argv:
    model = XGBClassifier(n_estimators=40, max_depth=3).fit(train_x, train_y)
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", model.score(val_x, val_y))  # the controller routes by it
        mlflow.xgboost.log_model(
            model,
            name="model",
            signature=infer_signature(val_x, model.predict(val_x)),
            pip_requirements=["xgboost"],
            registered_model_name="Tumours",
        )
    print("Serve it: modelyard up --model Tumours")
else:
    with Client() as modelyard:  # MODELYARD_URL, or else http://127.0.0.1:9000
        job = modelyard.predict(val_x[:5], model="Tumours")  # pandas, polars, pyarrow or dicts of columns
    print(job.outputs, "expected", val_y[:5].tolist())
