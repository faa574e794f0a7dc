"""A scikit-learn pipeline on columns of text, numbers with missing values, booleans and times."""

import mlflow
import pandas as pd
from mlflow.models import infer_signature
from show import show
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

NAME = "Pipeline"
frame = pd.DataFrame(
    {
        "age": [22.0, None, 40.5, 61.0],
        "n": [1, 2, 3, 4],
        "city": ["Oslo", "Bonn", "Oslo", "Bern"],
        "is_new": [True, False, True, False],
        "at": pd.to_datetime(["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"]),
    }
)
rows = [[22.0, 1, "Oslo", True, "2026-01-01"], [None, 2, "Bonn", False, "2026-02-01"]]
BODY = {"dataframe_split": {"columns": list(frame), "data": rows}}

columns = make_column_transformer(
    (SimpleImputer(), ["age", "n"]), (OneHotEncoder(handle_unknown="ignore"), ["city", "is_new"])
)
pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, ["no", "yes", "no", "yes"])
mlflow.sklearn.log_model(
    pipeline,
    name="model",
    signature=infer_signature(frame, pipeline.predict(frame)),
    serialization_format="cloudpickle",
    pip_requirements=["scikit-learn", "pandas"],
    registered_model_name=NAME,
)
show(NAME, BODY, settings="MODELYARD_ALLOW_PICKLE_MODELS=true")
