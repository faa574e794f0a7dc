"""The kinds of models that people keep in MLflow, each saved to a folder, with a request for it as JSON."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.pytorch
import mlflow.sklearn
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

Save = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        save: Saves it to a folder.
        body: A request with two rows.
        serves_in_mlflow: Whether MLflow's own scoring server can serve it.
        contract: Kind of its contract.
        merges: Whether jobs share a batch.
    """

    save: Save
    body: dict[str, Any]
    contract: str = "columns"
    merges: bool = True
    serves_in_mlflow: bool = True
    allows_non_finite: bool = False
    loads_without_switch: bool = field(default=False)


def pyfunc(
    predict: Callable[..., Any], signature: ModelSignature | None, *, takes_params: bool = False
) -> Save:
    """A function as a model."""
    warnings.simplefilter("ignore")

    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return predict(model_input, params) if takes_params else predict(model_input)

    def save(path: str) -> None:
        mlflow.pyfunc.save_model(path, python_model=Model(), signature=signature, pip_requirements=["numpy"])

    return save


def estimator(fitted: Any, signature: ModelSignature | None, **options: Any) -> Save:
    def save(path: str) -> None:
        mlflow.sklearn.save_model(
            fitted,
            path,
            signature=signature,
            pip_requirements=["scikit-learn"],
            **{"serialization_format": "cloudpickle", **options},
        )

    return save


def tensor(dtype: str, *shape: int, name: str | None = None) -> TensorSpec:
    return TensorSpec(np.dtype(dtype), shape, name)


def takes(*specs: Any, params: ParamSchema | None = None) -> ModelSignature:
    return ModelSignature(inputs=Schema(list(specs)), params=params)


FRAME = pd.DataFrame(
    {
        "age": [22.0, None, 40.5, 61.0],
        "n": np.array([1, 2, 3, 4], np.int64),
        "city": ["Oslo", "Bonn", "Oslo", "Bern"],
        "is_new": [True, False, True, False],
        "at": pd.to_datetime(["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"]),
    }
)
ROWS = {
    "columns": list(FRAME),
    "data": [[22.0, 1, "Oslo", True, "2026-01-01"], [None, 2, "Bonn", False, "2026-02-01"]],
}


def _pipeline() -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = make_column_transformer(
        (SimpleImputer(), ["age", "n"]), (OneHotEncoder(handle_unknown="ignore"), ["city", "is_new"])
    )
    return make_pipeline(columns, LogisticRegression()).fit(FRAME, ["no", "yes", "no", "yes"])


def _forest() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=1).fit(
        [[1.0, 2.0], [np.nan, 1.0], [3.0, np.nan], [2.0, 2.0]], [0.1, 0.2, 0.3, 0.4]
    )


def _ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge().fit(np.arange(12.0).reshape(4, 3), np.array([0.1, 0.7, 0.2, 0.3]))


class TwoInputs(torch.nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": (ids * mask).sum(1), "each": ids.to(torch.float32) * mask}


class Heads(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"label": x.sum(1, keepdim=True), "box": x * 2}


class Segments(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True)


def pt2(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], signature: ModelSignature) -> Save:
    """An exported program, in the layout that MLflow gives its own."""

    def save(path: str) -> None:
        from mlflow.models import Model

        n = torch.export.Dim("n", min=1, max=512)
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: n} for _ in inputs))
        Path(path, "data").mkdir(parents=True)
        torch.export.save(program, Path(path, "data", "model.pt2"))
        model = Model(signature=signature)
        model.add_flavor("pytorch", model_data="data", pytorch_version=str(torch.__version__))
        model.add_flavor("python_function", loader_module="mlflow.pytorch", data="data")
        model.save(str(Path(path, "MLmodel")))

    return save


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nnot really").decode()
LONG_TEXT = ParamSchema(
    [ParamSpec("top_k", DataType.long, 2), ParamSpec("words", DataType.string, ["a"], (-1,))]
)


def _answer_text(frame: Any, params: Any) -> list[dict[str, Any]]:
    return [{"text": text.upper(), "k": params["top_k"], "words": params["words"]} for text in frame["text"]]


def kinds() -> dict[str, Kind]:
    """Every kind, by what it is called."""
    warnings.simplefilter("ignore")
    pipeline, forest, ridge = _pipeline(), _forest(), _ridge()
    mixed = infer_signature(FRAME, np.array(["no"]))
    two = np.array([[1.5, 2.5, 3.0], [0.1, 0.2, 0.3]])
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": [2.0, 3.0]})
    image = np.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    optional = takes(
        ColSpec("double", "a"), ColSpec("double", "b", required=False), ColSpec("long", "c", required=False)
    )
    return {
        "pipeline on mixed columns": Kind(estimator(pipeline, mixed), {"dataframe_split": ROWS}),
        "ridge on float64": Kind(
            estimator(ridge, takes(tensor("float64", -1, 3))), {"inputs": two.tolist()}, "tensor"
        ),
        "trees on columns with nulls": Kind(
            estimator(forest, infer_signature(frame)),
            {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 2.0], [None, 3.0]]}},
        ),
        "probabilities": Kind(
            estimator(pipeline, mixed, pyfunc_predict_fn="predict_proba"), {"dataframe_split": ROWS}
        ),
        "text with parameters answering dictionaries": Kind(
            pyfunc(_answer_text, takes(ColSpec("string", "text"), params=LONG_TEXT), takes_params=True),
            {
                "dataframe_records": [{"text": "a"}, {"text": "b"}],
                "params": {"top_k": 3, "words": ["x", "y"]},
            },
        ),
        "string labels": Kind(
            pyfunc(
                lambda x: np.array(["low", "high"])[(x[:, 0] > 1).astype(int)],
                takes(tensor("float32", -1, 2)),
            ),
            {"inputs": [[0.5, 1.0], [1.5, 1.0]]},
            "tensors",
        ),
        "two named tensors answering a dictionary": Kind(
            pyfunc(
                lambda x: {"sum": x["ids"].sum(axis=1), "mask": x["mask"] * 0.5},
                takes(tensor("int64", -1, -1, name="ids"), tensor("float64", -1, 2, name="mask")),
            ),
            {"inputs": {"ids": [[1, 2, 3], [4, 5, 6]], "mask": [[1.0, 0.0], [0.5, 0.25]]}},
            "tensors",
        ),
        "PyTorch with two inputs": Kind(
            pt2(
                TwoInputs(),
                (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3)),
                takes(tensor("float32", -1, 3, name="mask"), tensor("int64", -1, 3, name="ids")),
            ),
            {"inputs": {"ids": [[1, 2, 3], [4, 5, 6]], "mask": [[1, 0, 1], [1, 1, 0.5]]}},
            "tensors",
            serves_in_mlflow=False,
            loads_without_switch=True,
        ),
        "dictionary of heads": Kind(
            pt2(Heads(), (torch.ones(2, 3),), takes(tensor("float32", -1, 3))),
            {"inputs": two.tolist()},
            "tensors",
            serves_in_mlflow=False,
            loads_without_switch=True,
        ),
        "segmentation": Kind(
            pt2(Segments(), (torch.ones(2, 3, 4, 4),), takes(tensor("float32", -1, 3, 4, 4))),
            {"instances": image.tolist()},
            "tensors",
            serves_in_mlflow=False,
            loads_without_switch=True,
        ),
        "embedding": Kind(
            pyfunc(
                lambda x: np.repeat(x[:, :1], 384, axis=1) / 3,
                takes(tensor("float32", -1, 3)),
            ),
            {"inputs": two.tolist()},
            "tensor",
        ),
        "one named tensor": Kind(
            pyfunc(lambda x: x["pixels"].mean(axis=1), takes(tensor("float64", -1, 3, name="pixels"))),
            {"inputs": two.tolist()},
            "tensors",
        ),
        "sentence embeddings": Kind(
            pyfunc(lambda x: np.array([[len(t), 0.5] for t in x[0]]), takes(ColSpec("string"))),
            {"inputs": ["a sentence", "another"]},
        ),
        "PNG as base64 column": Kind(
            pyfunc(lambda x: [len(each) for each in x["image"]], takes(ColSpec("binary", "image"))),
            {"dataframe_split": {"columns": ["image"], "data": [[PNG], [PNG]]}},
        ),
        "float64 with free dimensions": Kind(
            pyfunc(lambda x: x.sum(axis=1), takes(tensor("float64", -1, -1))),
            {"inputs": [[0.1, 0.2], [0.3, 0.4]]},
            "tensors",
        ),
        "int64": Kind(
            pyfunc(lambda x: x + 2**60, takes(tensor("int64", -1, 2))), {"inputs": [[1, 2], [3, 4]]}, "tensor"
        ),
        "uint8": Kind(
            pyfunc(lambda x: 255 - x, takes(tensor("uint8", -1, 2))), {"inputs": [[1, 2], [3, 255]]}, "tensor"
        ),
        "bool": Kind(
            pyfunc(lambda x: ~x, takes(tensor("bool", -1, 2))),
            {"inputs": [[True, False], [True, True]]},
            "tensors",
        ),
        "pt2": Kind(
            pt2(torch.nn.Linear(3, 4), (torch.ones(2, 3),), takes(tensor("float32", -1, 3))),
            {"inputs": two.tolist()},
            "tensor",
            serves_in_mlflow=False,
            loads_without_switch=True,
        ),
        "pickled without signature": Kind(
            estimator(ridge, None), {"inputs": two.tolist()}, "any", merges=False
        ),
        "float64 pairs": Kind(
            pyfunc(lambda x: x[:, :1] * x[:, 1:], takes(tensor("float64", -1, 2))),
            {"inputs": [[0.1, 3], [0.7, 7]]},
            "tensor",
        ),
        "answers NaN": Kind(
            pyfunc(lambda x: np.log(x), takes(tensor("float64", -1, 2))),
            {"inputs": [[1.0, -1.0], [2.0, 3.0]]},
            "tensor",
            allows_non_finite=True,
        ),
        "optional columns": Kind(
            pyfunc(lambda x: x.sum(axis=1), optional),
            {"dataframe_records": [{"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}]},
        ),
        "no signature at all": Kind(
            pyfunc(lambda x: pd.DataFrame({"n": x["a"] * 2, "t": x["b"] + "!"}), None),
            {"dataframe_records": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]},
            "any",
            merges=False,
        ),
        "one answer for all rows": Kind(
            pyfunc(lambda x: {"mean": float(x["a"].mean())}, takes(ColSpec("double", "a"))),
            {"dataframe_records": [{"a": 1.0}, {"a": 2.0}]},
            merges=False,
        ),
        "nested columns": Kind(
            pyfunc(
                lambda x: [{"n": len(m), "first": m[0]["role"]} for m in x["messages"]],
                infer_signature([{"messages": [{"role": "user", "content": "hi"}]}]),
            ),
            {"dataframe_records": [{"messages": [{"role": "user", "content": "hi"}]}] * 2},
        ),
    }


def tree_kinds() -> dict[str, Kind]:
    """Those of libraries that not every environment has."""
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0, 4.0] * 8, "n": np.arange(32)})
    labels = np.array([0.1, 0.2, 0.3, 0.4] * 8)
    rows = {"dataframe_split": {"columns": ["a", "n"], "data": [[1.0, 2], [None, 3]]}}
    found = {}
    if find_spec("lightgbm"):
        import lightgbm
        import mlflow.lightgbm

        booster = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1}, lightgbm.Dataset(frame, labels), 3)

        def save_lightgbm(path: str) -> None:
            signature = infer_signature(frame)
            mlflow.lightgbm.save_model(booster, path, signature=signature, pip_requirements=["numpy"])

        found["LightGBM on columns with nulls"] = Kind(save_lightgbm, rows, loads_without_switch=True)
    if find_spec("xgboost"):
        import mlflow.xgboost
        import xgboost

        def save_xgboost(data: Any, signature: ModelSignature) -> Save:
            fitted = xgboost.XGBRegressor(n_estimators=3).fit(data, labels)

            def save(path: str) -> None:
                mlflow.xgboost.save_model(fitted, path, signature=signature, pip_requirements=["numpy"])

            return save

        found["XGBoost on columns with nulls"] = Kind(
            save_xgboost(frame, infer_signature(frame)), rows, loads_without_switch=True
        )
        found["XGBoost on a tensor with NaN"] = Kind(
            save_xgboost(frame.to_numpy(), takes(tensor("float64", -1, 2))),
            {"inputs": [[1.0, 2.0], [None, 3.0]]},
            "tensors",
            loads_without_switch=True,
        )
    return found


def body_of(kind: Kind) -> bytes:
    return json.dumps(kind.body).encode()
