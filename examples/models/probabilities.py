"""A scikit-learn classifier that answers probabilities; its labels are those of `classes_`."""

import mlflow
from mlflow.models import infer_signature
from show import show
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

NAME = "Iris"
flowers = load_iris(as_frame=True)
BODY = {
    "dataframe_split": {"columns": flowers.feature_names, "data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3, 5.2, 2.3]]}
}

model = LogisticRegression(max_iter=500).fit(flowers.data, flowers.target_names[flowers.target])
mlflow.sklearn.log_model(
    model,
    name="model",
    signature=infer_signature(flowers.data, model.predict_proba(flowers.data)),
    pyfunc_predict_fn="predict_proba",
    metadata={"modelyard.task": "classification"},
    serialization_format="skops",
    pip_requirements=["scikit-learn", "skops"],
    registered_model_name=NAME,
)
show(NAME, BODY)
