"""A LightGBM booster that is called with one matrix answers, to the last bit, what it answers to a DataFrame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.lightgbm
import msgspec
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from app.contract.documents import Document
from app.contract.payloads import to_payload
from app.settings import WorkerSettings
from workers import model
from workers.job_inputs import decode, to_input
from workers.model_lookup import ModelVersion, read_description
from workers.warm_up import LoadedModel

lightgbm = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 300
TYPES = {"measure": "double", "price": "float", "count": "long", "kind": "integer", "flag": "boolean"}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "measure": rng.normal(size=ROWS),
            "price": rng.lognormal(size=ROWS).astype(np.float32),
            "count": rng.integers(-(2**62), 2**62, ROWS),
            "kind": rng.integers(0, 5, ROWS).astype(np.int32),
            "flag": rng.random(ROWS) < 0.5,
        }
    )
    frame.loc[::7, "measure"] = np.nan
    return frame


def loaded(
    frame: pd.DataFrame, folder: Path, optional: str = "", example: pd.DataFrame | None = None
) -> LoadedModel:
    label = frame["price"] * frame["flag"] + frame["measure"].fillna(0) + frame["kind"].astype("int32") % 2
    booster = lightgbm.train(
        {"num_leaves": 15, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 2},
        lightgbm.Dataset(frame, label),
        num_boost_round=15,
    )
    schema = Schema([ColSpec(kind, name, required=name != optional) for name, kind in TYPES.items()])
    signature = ModelSignature(schema)
    mlflow.lightgbm.save_model(
        booster, str(folder), signature=signature, pip_requirements=["lightgbm"], input_example=example
    )
    described = read_description(str(folder))
    found = ModelVersion("m", 1, "", str(folder), described.flavors, described.signature)
    return model.load(found, WorkerSettings(device="cpu"))


def documents(frame: pd.DataFrame, contract: Any, sizes: list[int]) -> list[Any]:
    """The data of jobs of so many rows each."""
    rows = [[None if each != each else each for each in row] for row in frame.astype(object).to_numpy()]
    cut, start = [], 0
    for size in sizes:
        value = {"columns": list(frame), "data": rows[start : start + size]}
        cut.append(decode(to_payload(Document("dataframe_split", value), contract, ROWS, "strict").data))
        start += size
    return cut


@pytest.mark.parametrize("sizes", [[1] * 64, [3] * 5, [1, 7, 2], [40], [20, 1, 30], [1, 16]], ids=str)
def test_a_batch_as_a_matrix_is_answered_as_a_frame(sizes: list[int], tmp_path: Path) -> None:
    frame = table()
    served = loaded(frame, tmp_path / "m")
    assert served.takes_matrix
    given = to_input(documents(frame, served.contract, sizes), served.contract, served.takes_matrix)
    assert isinstance(given, np.ndarray)
    by_mlflow = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(frame[: sum(sizes)])
    assert np.array_equal(served.predict(given), by_mlflow)


def test_a_model_that_was_trained_on_categories_keeps_its_frame(tmp_path: Path) -> None:
    frame = table().astype({"kind": "category"})
    assert not loaded(frame, tmp_path / "m").takes_matrix


def test_a_boolean_that_may_be_missing_keeps_its_frame(tmp_path: Path) -> None:
    assert not loaded(table(), tmp_path / "m", optional="flag").takes_matrix


def test_an_example_with_missing_values_is_published_as_json(tmp_path: Path) -> None:
    frame = table()
    served = loaded(frame, tmp_path / "m", example=frame[:2])
    assert "NaN" in (tmp_path / "m" / "serving_input_example.json").read_text()
    published = msgspec.json.decode(served.example)["dataframe_split"]
    assert [row[0] for row in published["data"]] == [None, frame["measure"][1]]
