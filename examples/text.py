"""A Python model on text, with a parameter: run it to train, and with the argument `predict` to call it."""

import sys

import mlflow
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from modelyard import Client

TEXTS = ["my invoice is wrong", "the card was charged twice", "the parcel is late", "where is my order"]
TOPICS = ["billing", "billing", "delivery", "delivery"]
asked = pd.DataFrame({"text": ["the courier lost my parcel", "refund this invoice"]})


class Topics(mlflow.pyfunc.PythonModel):
    pipeline = make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(TEXTS, TOPICS)

    def predict(self, context, model_input, params=None):
        scores = pd.DataFrame(self.pipeline.predict_proba(model_input.text), columns=self.pipeline.classes_)
        return [row.nlargest(params["top"]).to_dict() for _, row in scores.iterrows()]


if "predict" not in sys.argv:
    mlflow.pyfunc.log_model(
        name="model",
        python_model=Topics(),
        signature=mlflow.models.infer_signature(asked, params={"top": 1}),
        pip_requirements=["scikit-learn", "pandas"],
        registered_model_name="Topics",
    )
    # Loading a Python model runs its code, which a worker does on demand only.
    print("Serve it: MODELYARD_ALLOW_PICKLE_MODELS=true modelyard up --model Topics")
else:
    with Client() as modelyard:  # MODELYARD_URL, or else http://127.0.0.1:9000
        print(modelyard.predict(asked, model="Topics", params={"top": 2}).outputs)
