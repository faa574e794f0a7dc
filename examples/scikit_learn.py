"""A scikit-learn pipeline on columns: `python scikit_learn.py` trains it, `python scikit_learn.py predict` calls it."""

import sys

import mlflow
from mlflow.models import infer_signature
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelyard import Client

wine = load_wine(return_X_y=True, as_frame=True)
train_x, val_x, train_y, val_y = train_test_split(*wine, random_state=0)

if "predict" not in sys.argv:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(train_x, train_y)
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", pipeline.score(val_x, val_y))  # the controller routes by it
        mlflow.sklearn.log_model(
            pipeline,
            name="model",
            signature=infer_signature(val_x, pipeline.predict_proba(val_x)),
            pyfunc_predict_fn="predict_proba",
            serialization_format="skops",  # holds no code, unlike a pickle
            pip_requirements=["scikit-learn", "skops"],
            registered_model_name="Wine",
        )
    print("Serve it: modelyard up --model Wine")
else:
    with Client() as modelyard:  # MODELYARD_URL, or else http://127.0.0.1:9000
        print(modelyard.predict(val_x[:3], model="Wine").to_numpy().round(3))  # a row per bottle
