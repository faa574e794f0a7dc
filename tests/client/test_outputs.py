"""The outcome of a job as arrays and tables."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import polars
import pytest

from modelyard import Job, OutputsNotTabularError
from modelyard.errors import ConfigurationError, OutputsMissingError
from tests.client.conftest import RECEIPT


def job(**members: Any) -> Job:
    document = {**RECEIPT, "status": "succeeded", **members}
    return msgspec.json.decode(msgspec.json.encode(document), type=Job)


@pytest.mark.parametrize(
    ("outputs", "dtypes", "dtype", "values"),
    [
        ([0.1, 2.0], "float32", "float32", np.array([0.1, 2.0], np.float32)),
        ([0.1, None], "float64", "float64", [0.1, np.nan]),
        ([[1, 2], [3, 2**62 + 1]], "int64", "int64", [[1, 2], [3, 2**62 + 1]]),
        ([2**63], None, "uint64", [2**63]),
        ([True, False], "bool", "bool", [True, False]),
        ([0.1, None], None, "float64", [0.1, np.nan]),
        (["a", "bc"], None, "<U2", ["a", "bc"]),
        ([1, "a", None], None, "object", [1, "a", None]),
        ([2**53 + 1, 0.5], None, "object", [2**53 + 1, 0.5]),
        ([[1, 0.5], [-(2**53), 2]], None, "float64", [[1, 0.5], [-(2**53), 2]]),
        ([], "float32", "float32", []),
    ],
)
def test_outputs_become_an_array_that_holds_them_exactly(
    outputs: Any, dtypes: Any, dtype: str, values: Any
) -> None:
    array = job(outputs=outputs, outputs_dtype=dtypes).to_numpy()
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, np.array(values, dtype))


@pytest.mark.parametrize("status", ["queued", "running", "failed", "expired", "cancelled"])
def test_a_job_without_outputs_gives_no_array_and_no_table(status: str) -> None:
    unsuccessful = job(status=status)
    for read in (unsuccessful.to_numpy, unsuccessful.to_frame):
        with pytest.raises(OutputsMissingError, match=f"is {status} and has no outputs"):
            read()
    assert unsuccessful.outputs is None


@pytest.mark.parametrize(
    "outputs", [[[1, 2], [3]], [[0, 1], [[0.5, 0.5], [1, 0]]], [[[1], [2, 3]], [[4], [5]]]]
)
def test_ragged_outputs_are_an_array_of_lists(outputs: Any) -> None:
    array = job(outputs=outputs).to_numpy()
    assert isinstance(array, np.ndarray)
    assert (array.shape, [*array]) == ((2,), outputs)
    assert job(outputs=outputs).to_frame().to_dict("list") == {"0": outputs}


def test_null_is_no_array_and_named_outputs_of_different_lengths_are_no_table() -> None:
    for read in (job(outputs=None).to_numpy, job(outputs=None).to_frame):
        with pytest.raises(OutputsMissingError, match="the model answered null"):
            read()
    uneven = job(outputs={"a": [1, 2], "loss": 0.5})
    with pytest.raises(OutputsNotTabularError, match=r"differ \(a 2, loss 1\); use to_numpy"):
        uneven.to_frame()
    assert np.asarray(uneven.to_numpy()["loss"]).tolist() == 0.5


def test_named_outputs_are_an_array_each() -> None:
    named = job(outputs={"a": [0.1], "m": [[1, 2]]}, outputs_dtype={"a": "float16", "m": "int8"}).to_numpy()
    assert isinstance(named, dict)
    assert {name: (each.dtype.name, each.shape) for name, each in named.items()} == {
        "a": ("float16", (1,)),
        "m": ("int8", (1, 2)),
    }
    rows = job(outputs=[{"n": 1, "t": "x"}, {"n": 2}]).to_numpy()
    assert isinstance(rows, dict)
    assert {name: each.tolist() for name, each in rows.items()} == {"n": [1, 2], "t": ["x", None]}


def test_outputs_become_a_table() -> None:
    pd.testing.assert_frame_equal(
        job(outputs=[{"n": 1, "t": "x"}, {"n": 2, "t": "y"}]).to_frame(),
        pd.DataFrame({"n": [1, 2], "t": ["x", "y"]}),
    )
    assert job(outputs=[[1.5, 2], [3, 4]]).to_frame().to_dict("list") == {"0": [1.5, 3.0], "1": [2.0, 4.0]}
    assert job(outputs=["a", "b"]).to_frame().to_dict("list") == {"0": ["a", "b"]}
    assert [*job(outputs={"a": [1, 2], "m": [[1, 2], [3, 4]]}).to_frame()["m"][1]] == [3, 4]


def test_a_classification_is_its_scores_or_classes() -> None:
    predictions, rows = (
        [{"class": 1, "scores": [0.25, 0.75]}, {"class": 0, "scores": [1, 0]}],
        [[0.25, 0.75], [1, 0]],
    )
    repeated = {"outputs": rows, "outputs_dtype": "float32"}  # as for a version without a task
    for scored in (job(predictions=predictions), job(predictions=predictions, **repeated)):
        array = scored.to_numpy()
        assert isinstance(array, np.ndarray)
        assert (array.dtype.name, array.tolist()) == ("float32", rows)
        assert scored.to_frame().to_dict("list") == {
            "class": [1, 0],
            "score_0": [0.25, 1.0],
            "score_1": [0.75, 0.0],
        }
    classes = job(predictions=[{"class": 3}])
    assert np.asarray(classes.to_numpy()).tolist() == [3]
    assert classes.to_frame().to_dict("list") == {"class": [3]}


@pytest.mark.parametrize(
    ("predictions", "outputs"),
    [
        (
            [{"class": 1, "scores": [0.25, 0.75]}, {"class": None, "scores": [None, 1]}],
            [[0.25, 0.75], [None, 1]],
        ),
        ([{"class": 3, "scores": None}, {"class": None, "scores": None}], [3, None]),
        ([{"class": 0, "label": "low", "scores": None}], [0]),
        ([{"value": 0.5}], [0.5]),
    ],
)
def test_outputs_are_known_where_only_the_predictions_were_sent(predictions: Any, outputs: Any) -> None:
    assert job(predictions=predictions).outputs == outputs


def test_a_table_is_one_of_polars_where_pandas_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    frame = job(outputs=[{"n": 2**62 + 1, "t": "x"}, {"n": 2, "t": "y"}]).to_frame()
    assert isinstance(frame, polars.DataFrame)
    assert frame.to_dict(as_series=False) == {"n": [2**62 + 1, 2], "t": ["x", "y"]}


@pytest.mark.parametrize(
    ("outputs", "dtype"),
    [
        ([1, None, 2**62 + 1], polars.Int64),
        ([[1], [2, 3]], polars.List(polars.Int64)),
        ([[[[0.5]]], [[[1.5]]]], polars.Array(polars.Float64, (1, 1, 1))),
        ([1, "a", None], polars.Object),
        ([[{"a": 1}], [{"b": 2}], []], polars.Object),
    ],
)
def test_a_column_of_polars_has_a_type_that_holds_all_values(
    outputs: list[Any], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    [column] = job(outputs=outputs).to_frame()
    assert column.dtype == dtype
    assert column.to_list() == outputs


def test_a_table_without_a_library_for_it_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match="pip install pandas"):
        job(outputs=[1]).to_frame()
