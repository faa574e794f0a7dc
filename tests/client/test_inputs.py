"""Samples of all kinds arrive in the controller with the same values, in several parts if they are too large."""

from __future__ import annotations

import base64
import datetime as dt
import io
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pandas as pd
import polars
import pyarrow as pa
import pydantic
import pytest
import scipy.sparse
import torch
from PIL import Image

from modelyard import Body
from modelyard.errors import InputNotFiniteError, InputNotNumericError, InputShapeError
from modelyard.inputs import ARROW_ROWS, read_input
from tests.pool_samples import encode_samples

AT = "2026-01-31T12:00:00.123456789"
FRAME = pd.DataFrame(
    {
        "n": pd.array([2**62 + 1, None], dtype="Int64"),
        "x": [0.1, np.nan],
        "t": ["ä", None],
        "b": [b"\x00\xff", b""],
        "at": pd.to_datetime([AT, None]),
        "ok": [True, False],
        "l": [[1, 2], []],
        5: pd.Categorical(["u", "v"]),
    },
    index=[7, 9],
)
SPLIT = {
    "columns": ["n", "x", "t", "b", "at", "ok", "l", "5"],
    "data": [
        [2**62 + 1, 0.1, "ä", base64.b64encode(b"\x00\xff").decode(), AT, True, [1, 2], "u"],
        [None, None, None, "", None, False, [], "v"],
    ],
}


class Stream:
    """Nothing but an Arrow stream, as libraries export one."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def sent(samples: Any, **options: Any) -> Any:
    """The body as the controller reads it."""
    content_type, body = encode_samples(samples, **options)
    return np.load(io.BytesIO(body)) if content_type == "application/x-npy" else orjson.loads(body)


def arrow() -> pa.Table:
    return pa.Table.from_pandas(FRAME.rename(columns=str), preserve_index=False)


@pytest.mark.parametrize(
    "table", [FRAME, arrow(), arrow().to_batches()[0], Stream(arrow())], ids=lambda each: type(each).__name__
)
def test_a_table_of_any_library_is_sent_with_all_of_its_digits(table: Any) -> None:
    assert sent(table) == {"dataframe_split": SPLIT}
    assert read_input(table).n_rows == 2


def test_a_table_of_polars_is_sent_with_all_of_its_digits() -> None:
    table = polars.from_arrow(arrow())
    assert isinstance(table, polars.DataFrame)
    assert sent(table) == {"dataframe_split": SPLIT}
    times = {"at": table["at"], "n": table["n"]}
    rows = [[AT, 2**62 + 1], [None, None]]
    assert sent(times) == {"dataframe_split": {"columns": ["at", "n"], "data": rows}}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "stream"])
def test_a_larger_table_of_plain_columns_is_sent_as_arrow(library: str) -> None:
    rows = range(ARROW_ROWS)
    frame = pd.DataFrame(
        {
            "n": pd.array([None if row % 9 == 0 else 2**62 + row for row in rows], dtype="Int64"),
            "x": [np.nan if row % 7 == 0 else row / 3 for row in rows],
            "t": [None if row % 5 == 0 else f"ä{row}" for row in rows],
            5: [row % 2 == 0 for row in rows],
        },
        index=rows[::-1],
    )
    plain = pa.Table.from_pandas(frame.rename(columns=str), preserve_index=False)
    of = {"pandas": frame, "polars": polars.from_arrow(plain), "pyarrow": plain, "stream": Stream(plain)}
    content_type, body = encode_samples(of[library])
    assert content_type == "application/vnd.apache.arrow.stream"
    assert pa.ipc.open_stream(body).read_all().to_pydict() == plain.to_pydict()
    given = read_input(of[library] if library != "stream" else Stream(plain))
    part = pa.ipc.open_stream(given.encode(3, 5).body).read_all()
    assert part.to_pydict() == plain.slice(3, 2).to_pydict()


def test_a_larger_table_with_other_columns_params_or_infinities_is_not_sent_as_arrow() -> None:
    many = pd.concat([FRAME] * ARROW_ROWS)
    assert sent(many)["dataframe_split"]["data"][:2] == SPLIT["data"]
    assert sent(many[["x"]], params={"k": 1})["params"] == {"k": 1}
    mixed = pd.DataFrame({"a": [1, "x"] * ARROW_ROWS})
    assert sent(mixed)["dataframe_split"]["data"][:2] == [[1], ["x"]]
    with pytest.raises(InputNotFiniteError, match="infinity"):
        encode_samples(pd.DataFrame({"x": [np.inf] * ARROW_ROWS}))


def test_a_dict_is_columns_tensors_or_one_row() -> None:
    times = np.array([AT, "NaT"], "M8[ns]")
    plain = {"n": [1, 2], "x": np.array([0.1, np.nan], np.float32), "at": times, "s": FRAME["n"]}
    assert sent(plain, params={"k": 1}) == {
        "dataframe_split": {
            "columns": ["n", "x", "at", "s"],
            "data": [[1, float(np.float32(0.1)), AT, 2**62 + 1], [2, None, None, None]],
        },
        "params": {"k": 1},
    }
    tensors = {"a": np.eye(2, dtype=np.int64), "b": torch.ones(2, 1, 1)}
    assert sent(tensors) == {"data": [{"a": [1, 0], "b": [[1.0]]}, {"a": [0, 1], "b": [[1.0]]}]}
    assert sent({"n": 1, "t": "x", "at": pd.Timestamp(AT)}) == {"data": [{"n": 1, "t": "x", "at": AT}]}
    for uneven in ({"a": [1], "b": [1, 2]}, {"a": [1], "b": 1}):
        with pytest.raises(InputShapeError, match="a: 1, b: "):
            sent(uneven)


def test_a_structured_array_is_columns() -> None:
    rows = np.array([(1, "a", AT), (2, "b", "NaT")], [("n", "i8"), ("t", "U2"), ("at", "M8[ns]")])
    split = {"columns": ["n", "t", "at"], "data": [[1, "a", AT], [2, "b", None]]}
    assert sent(rows) == sent(rows.view(np.recarray)) == {"dataframe_split": split}


@pytest.mark.parametrize("column", [pd.Series, polars.Series, pa.array, list])
def test_decimals_are_numbers_with_all_of_their_digits(column: Any) -> None:
    _, body = encode_samples({"x": column([Decimal("0.10"), Decimal("-3")])})
    assert b'"data":[[0.10],[-3.00]]' in body or b'"data":[[0.10],[-3]]' in body


@pytest.mark.parametrize(
    ("samples", "remedy"),
    [
        (polars.LazyFrame({"a": [1]}), r"\.collect\(\)"),
        (scipy.sparse.csr_matrix([[1.0, 0.0]]), r"\.toarray\(\)"),
        (scipy.sparse.csr_array([[1.0, 0.0]]), r"\.toarray\(\)"),
        ((row for row in [[1.0]]), r"list\(\).*map\(\)"),
        ({1.0, 2.0}, r"list\(\)"),
    ],
    ids=["lazy", "sparse matrix", "sparse array", "generator", "set"],
)
def test_the_error_for_what_is_no_samples_yet_says_how_to_make_them(samples: Any, remedy: str) -> None:
    with pytest.raises(InputNotNumericError, match=f"is no samples; .*{remedy}"):
        encode_samples(samples)


def test_masked_values_are_missing_where_the_dtype_has_them_and_else_refused() -> None:
    np.testing.assert_array_equal(sent(np.ma.masked_greater([1.5, 2.5], 2)), [1.5, np.nan])
    np.testing.assert_array_equal(sent(np.ma.masked_array([1, 2])), [1, 2])
    with pytest.raises(InputNotNumericError, match="MaskedArray"):
        encode_samples(np.ma.masked_greater([1, 2], 1))


def test_objects_of_pydantic_are_rows_and_tables_are_tensors_of_a_dict() -> None:
    class Row(pydantic.BaseModel):
        at: dt.date
        tags: list[str]

    assert sent([Row(at=dt.date(2026, 1, 31), tags=["x"])]) == {"data": [{"at": "2026-01-31", "tags": ["x"]}]}
    assert sent({"a": FRAME[["x"]]}) == {"data": [{"a": [0.1]}, {"a": [None]}]}


def test_images_and_tensors_are_arrays() -> None:
    grey, palette = Image.new("L", (3, 2), 7), Image.new("P", (3, 2))
    palette.putpalette([9, 8, 7] * 256)
    np.testing.assert_array_equal(sent(grey), np.full((1, 2, 3), 7, np.uint8))
    np.testing.assert_array_equal(sent([grey, grey]), np.full((2, 2, 3), 7, np.uint8))
    np.testing.assert_array_equal(sent(palette)[0, 0, 0], [9, 8, 7])
    np.testing.assert_array_equal(sent(Image.new("1", (1, 1), 1)), [[[255]]])
    palette.putpalette([9, 8, 7, 6] * 256, "RGBA")
    np.testing.assert_array_equal(sent(palette.convert("PA"))[0, 0, 0], [9, 8, 7, 6])
    needs_grad = torch.full((2, 2), 0.1, requires_grad=True)
    read = sent(needs_grad)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.full((2, 2), 0.1, np.float32))
    np.testing.assert_array_equal(sent([torch.ones(2), torch.zeros(2)]), [[1, 1], [0, 0]])
    with pytest.raises(InputNotNumericError, match="float32"):
        sent(torch.ones(2, dtype=torch.bfloat16))


def test_an_array_that_is_not_of_numbers_or_has_params_beside_it_is_json() -> None:
    assert sent(np.array([True, False])) == {"data": [True, False]}
    assert sent(np.array(["a", "ä"])) == {"data": ["a", "ä"]}
    assert sent(np.array([AT], "M8[ns]")) == {"data": [AT]}
    assert sent(np.array([[0.1]], np.float32), params={"k": 1}) == {
        "data": [[float(np.float32(0.1))]],
        "params": {"k": 1},
    }
    assert sent([{"a": np.int64(1), "b": pd.NA, "c": np.array([1.5])}]) == {
        "data": [{"a": 1, "b": None, "c": [1.5]}]
    }
    assert np.isnan(sent(np.array([np.nan]))).all()


def test_a_body_is_sent_as_it_is() -> None:
    assert encode_samples(Body(b"\x89PNG", "image/png")) == ("image/png", b"\x89PNG")
    assert sent(Body({"inputs": [1]})) == {"inputs": [1]}
    with pytest.raises(InputShapeError, match="write them into it"):
        sent(Body({"inputs": [1]}), params={"k": 1})


@pytest.mark.parametrize(
    "samples", [np.arange(6).reshape(3, 2), FRAME[["n", "t"]], {"a": [1, 2, 3]}, [[1], [2], [3]]]
)
def test_the_parts_of_samples_are_the_samples(samples: Any) -> None:
    given = read_input(samples)
    rows = []
    for place in range(given.n_rows):
        content_type, body = given.encode(place, place + 1)
        if content_type == "application/x-npy":
            rows += np.load(io.BytesIO(body)).tolist()
        else:
            [value] = orjson.loads(body).values()
            rows += value["data"] if isinstance(value, dict) else value
    whole = sent(samples)
    if isinstance(whole, np.ndarray):
        assert rows == whole.tolist()
    else:
        [value] = whole.values()
        assert rows == (value["data"] if isinstance(value, dict) else value)
