"""A model's answer becomes the JSON that MLflow's scoring server would write, or the job fails with the reason."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pandas as pd
import polars
import pydantic
import pytest
import scipy.sparse
import torch

from app.contract import Column, ColumnsContract, ColumnType, TensorContract
from app.ledger.wire import Array, JobOutcome
from app.server_errors import ModelContractError
from controller.http.job_json import predictions_json
from workers.job_outputs import to_outcomes

CONTRACT = ColumnsContract((Column("a", ColumnType("long")),))


class Answer(pydantic.BaseModel):
    """A possible answer of a model with type hints."""

    text: str
    at: dt.date


def outcomes(output: Any, counts: list[int]) -> list[JobOutcome]:
    return to_outcomes(output, counts, CONTRACT, "", False)


@pytest.mark.parametrize(
    ("output", "written"),
    [
        ([Answer(text="a", at=dt.date(2026, 1, 2))], [{"text": "a", "at": "2026-01-02"}]),
        ([dt.datetime(2026, 1, 2, 3, 4), pd.NaT], ["2026-01-02T03:04:00", None]),
        ([np.datetime64("2026-01-02"), np.datetime64("NaT")], ["2026-01-02", None]),
        (np.array(["2026-01-02", "NaT"], "datetime64[s]"), ["2026-01-02T00:00:00", None]),
        (np.array("2026-01-02", "datetime64[D]"), "2026-01-02"),
        ({"a": np.array("NaT", "datetime64[s]")}, {"a": None}),
        ([b"\x00\x01", bytearray(b"\x02")], ["AAE=", "Ag=="]),
        ({True: 1, None: 2, 0.5: 3}, {"true": 1, "null": 2, "0.5": 3}),
        ([{False: {None: [True, None]}}], [{"false": {"null": [True, None]}}]),
        (pd.DataFrame([[1]], columns=[float("nan")]), [{"NaN": 1}]),
        (
            pd.DataFrame(
                {
                    "n": pd.array([2**53 + 1, None], "Int64"),
                    "x": pd.array([0.5, None], "Float64"),
                    "b": pd.array([True, None], "boolean"),
                    "t": pd.Series(["a", None], dtype="category"),
                }
            ),
            [{"n": 2**53 + 1, "x": 0.5, "b": True, "t": "a"}, {"n": None, "x": None, "b": None, "t": None}],
        ),
        ([{1: np.int64(2)}, {"x": {3}}], [{"1": 2}, {"x": [3]}]),
        ([pd.NA, None], [None, None]),
        ([torch.tensor([1, 2]), [0.5]], [[1, 2], [0.5]]),
        ([(each for each in "ab"), range(2)], [["a", "b"], [0, 1]]),
        (pd.Series(["a", float("nan")], name="s", dtype=object), [{"s": "a"}, {"s": None}]),
        (
            pd.DataFrame({"n": [1, 2], "at": np.array(["2026-01-02", "NaT"], "datetime64[s]")}),
            [
                {"n": 1, "at": "2026-01-02T00:00:00"},
                {"n": 2, "at": None},
            ],
        ),
        (
            pd.DataFrame({"at": pd.to_datetime(["2026-01-02T03:04:05.5"])}),
            [{"at": "2026-01-02T03:04:05.500000"}],
        ),
        ({"a": np.array([[1], [2]]), "b": ["x", "y"]}, {"a": [[1], [2]], "b": ["x", "y"]}),
        (polars.DataFrame({"a": [1, None], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
        (np.ma.array([1.5, 2.5], mask=[False, True]), [1.5, None]),
        ({"a": np.ma.array([1, 2], mask=[True, False])}, {"a": [None, 2]}),
    ],
)
def test_an_output_of_any_type_is_written_as_json(output: Any, written: Any) -> None:
    [alone] = outcomes(output, [2])
    assert json.loads(predictions_json(alone)) == written


def test_jobs_that_ran_together_get_their_own_rows_of_frames_and_tuples() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3]})
    first, second = outcomes((frame, np.arange(3)), [1, 2])
    assert json.loads(predictions_json(first)) == [[{"n": 1}], [0]]
    assert json.loads(predictions_json(second)) == [[{"n": 2}, {"n": 3}], [1, 2]]


@pytest.mark.parametrize(
    "output",
    [
        [1.0, float("inf")],
        pd.DataFrame({"n": [1.0, float("nan")]}),
        {"n": np.nan},
        [torch.tensor([np.nan])],
        polars.DataFrame({"n": [1.0, np.inf]}),
        {"n": polars.Series([np.nan])},
    ],
)
def test_a_number_that_is_not_finite_fails_its_job_wherever_it_stands(output: Any) -> None:
    [alone] = outcomes(output, [2])
    assert alone.error_code == "output_not_finite"


@pytest.mark.parametrize("output", [[object()], [1j], ["\ud800"], scipy.sparse.csr_matrix([[1]])])
def test_what_json_cannot_say_breaks_the_contract(output: Any) -> None:
    with pytest.raises(ModelContractError, match="which JSON cannot represent"):
        outcomes(output, [1])


def test_columns_of_one_name_break_the_contract_instead_of_replacing_each_other() -> None:
    with pytest.raises(ModelContractError, match="expected different names"):
        outcomes(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), [1])


def test_numbers_below_a_mask_are_no_scores() -> None:
    masked = np.ma.array([[0.1, 0.9]], mask=[[False, True]])
    with pytest.raises(ModelContractError, match="expected numbers"):
        to_outcomes(masked, [1], TensorContract("float32", (2,)), "", False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_single_numbers_are_answered_in_the_models_own_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    output = np.array([0.1, 0.3], dtype).reshape(shape)
    [found] = to_outcomes(output, [2], TensorContract("float32", (2,)), "", False)
    assert isinstance(found.outputs, Array)
    assert found.outputs.dtype == dtype
    assert dtype == "float16" or json.loads(predictions_json(found)) == np.reshape([0.1, 0.3], shape).tolist()
