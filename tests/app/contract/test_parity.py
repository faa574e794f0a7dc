"""What a model sees of a request is what MLflow's own scoring server makes of it, but for the differences listed."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from app.contract.documents import Document, Rules, read
from app.contract.payloads import to_payload
from app.server_errors import ModelyardError
from controller.input.arrow_bodies import read_table
from workers.job_inputs import decode, read_unread, to_input
from workers.signature import read_contract

pytestmark = pytest.mark.filterwarnings("ignore")
REFUSED = "refused"
PARQUET = "application/vnd.apache.parquet"


class Echo:
    """A model that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: Any = None

    def predict(self, data: Any, params: Any = None) -> list[int]:
        self.seen = (data, params)
        return [0]


def served(signature: ModelSignature | None) -> tuple[PyFuncModel, Echo]:
    echo = Echo()
    return PyFuncModel(Model(signature=signature), echo), echo


def by_mlflow(signature: ModelSignature | None, body: bytes, content_type: str = "application/json") -> Any:
    """What the model sees behind MLflow's server, or `REFUSED`."""
    model, echo = served(signature)
    schema = signature.inputs if signature else None
    try:
        scoring_server.invocations(body, content_type, model, schema)
    except MlflowException:
        return REFUSED
    except Exception:  # an answer of 500
        return REFUSED
    return echo.seen


def by_us(
    signature: ModelSignature | None,
    body: bytes,
    rules: Rules,
    content_type: str = "application/json",
) -> Any:
    """What the model sees behind a worker, or `REFUSED`."""
    model, echo = served(signature)
    written = signature.to_dict() if signature else {}
    contract = read_contract(
        {name: json.loads(written[name]) for name in ("inputs", "params") if written.get(name)}
    )
    try:
        if content_type == PARQUET:
            document = read_table(PARQUET.encode(), body, 1000, 2**20).document(contract)
        else:
            document = read(content_type.encode(), body, rules)
        payload = to_payload(document, contract, 1000, rules)
        if payload.form is None:
            data: Any = np.frombuffer(payload.data, contract.dtype).reshape(-1, *contract.sample_shape)  # type: ignore[union-attr]
        else:
            data = to_input([decode(payload.data)], contract)
        params = payload.form.params if payload.form else b""
        if isinstance(data, Document):
            data = read_unread(data, is_own=False)
    except (ModelyardError, MlflowException):
        return REFUSED
    model.predict(data, params=decode(params) if params else None)
    return echo.seen


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str) or isinstance(theirs, str):
        return isinstance(ours, str) and isinstance(theirs, str) and ours == theirs
    (data, params), (their_data, their_params) = ours, theirs
    return (params or None) == (their_params or None) and is_equal(data, their_data)


def is_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, pd.DataFrame):
        try:
            pd.testing.assert_frame_equal(
                ours.reset_index(drop=True), theirs.reset_index(drop=True), check_column_type=False
            )
        except AssertionError:
            return False
        return True
    if isinstance(theirs, list | str | int | float):
        return bool(ours == theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(is_equal(ours[name], theirs[name]) for name in theirs)
    return bool(
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and np.array_equal(ours, theirs, equal_nan=theirs.dtype.kind == "f")
    )


VALUES = [
    1,
    1.5,
    None,
    "3",
    "abc",
    True,
    3_000_000_000,
    "false",
    2.0,
    "2026-01-31T12:00:00",
    "2026-01-31T12:00:00Z",
    "aGk=",
]
TYPES = ["double", "float", "long", "integer", "boolean", "string", "datetime", "binary"]


def difference(kind: str, key: str, value: Any) -> str:
    """Why a value is refused or kept where MLflow's server changes or loses it; empty where the two agree."""
    if kind in ("long", "integer"):
        if value == 1.5:
            return "a fraction is refused, not cut off"
        if value == 3_000_000_000 and kind == "integer":
            return "a number out of range is refused, not wrapped"
    if kind == "boolean" and value not in (0, 1):
        return "only true, false, 1 and 0 are booleans"
    if kind == "string" and value is None:
        return "a missing text stays missing, not the word None"
    if kind == "datetime" and value in ("3", "2026-01-31T12:00:00Z"):
        return "3 is no time, and an offset is refused in all forms alike"
    if kind == "binary" and value not in ("aGk=", "abc", "3", "false"):
        return "only base64 is decoded, and only text is bytes"
    if kind == "datetime" and value in (1.5, 2.0, None, 1, 3_000_000_000):
        return "numbers and gaps are read in both forms alike"
    return ""


def one_column(key: str, value: Any) -> bytes:
    document: dict[str, Any] = {
        "dataframe_split": {"columns": ["c"], "data": [[value]]},
        "dataframe_records": [{"c": value}],
        "inputs": {"c": [value]},
        "instances": [{"c": value}],
    }
    return json.dumps({key: document[key]}).encode()


@pytest.mark.parametrize("key", ["dataframe_split", "dataframe_records", "inputs", "instances"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_a_column_is_what_mlflow_makes_of_it(kind: str, key: str) -> None:
    signature = ModelSignature(inputs=Schema([ColSpec(kind, "c")]))
    wrong = []
    for value in VALUES:
        body = one_column(key, value)
        ours, theirs = by_us(signature, body, "mlflow"), by_mlflow(signature, body)
        if not same(ours, theirs) and not difference(kind, key, value):
            wrong.append((value, ours, theirs))
    assert not wrong


TIMES = st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2261, 12, 31)).map(dt.datetime.isoformat)
NUMBERS = st.sampled_from([0, -0.0, 2**31, 2**53 + 1, 2**63, -(2**63), 65520.0, 3.5e38, 5e-324, 1e18])
CELLS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=4),
    TIMES,
    st.binary(max_size=4).map(lambda value: base64.b64encode(value).decode()),
    st.lists(st.none() | st.integers(), max_size=2),
)


def is_known(kind: str, key: str, is_required: bool, cells: list[Any]) -> bool:
    """Whether the values are listed as read otherwise on purpose although both take them, or only ours does."""
    if (
        not is_required
        and None in cells
        and (kind in ("boolean", "binary") or not any(each is not None for each in cells))
    ):
        return True
    if kind == "string":
        return None in cells and (key in ("inputs", "instances") or any(type(each) is int for each in cells))
    return kind == "datetime" and (len(cells) > 1 or type(cells[0]) is not str)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(TYPES),
    st.booleans(),
    st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances"]),
    st.lists(CELLS, min_size=1, max_size=3),
)
def test_values_that_both_take_reach_the_model_as_behind_mlflow(
    kind: str, is_required: bool, key: str, cells: list[Any]
) -> None:
    signature = ModelSignature(
        inputs=Schema([ColSpec(kind, "c", required=is_required), ColSpec("long", "n")])
    )
    rows = [{"n": row, "c": each} for row, each in enumerate(cells)]
    split = {"columns": ["n", "c"], "data": [list(row.values()) for row in rows]}
    columns = {"n": [*range(len(cells))], "c": cells}
    value = {"dataframe_split": split, "dataframe_records": rows, "inputs": columns, "instances": rows}[key]
    body = json.dumps({key: value}).encode()
    ours, theirs = by_us(signature, body, "mlflow"), by_mlflow(signature, body)
    assert ours is REFUSED or same(ours, theirs) or is_known(kind, key, is_required, cells), (
        f"{ours}\n{theirs}"
    )
    strict = by_us(signature, body, "strict")
    assert strict is REFUSED or same(strict, ours) or kind == "binary"


A, B = ColSpec("long", "a"), ColSpec("double", "b", required=False)
PERSON = Object([Property("name", DataType.string), Property("age", DataType.long, required=False)])
SIGNATURES: dict[str, ModelSignature | None] = {
    "columns": ModelSignature(inputs=Schema([A, B])),
    "text": ModelSignature(inputs=Schema([ColSpec("string", "t")])),
    "positional": ModelSignature(inputs=Schema([ColSpec("long"), ColSpec("double")])),
    "attached": ModelSignature(inputs=Schema([A, ColSpec("binary", "raw", required=False)])),
    "lists": ModelSignature(inputs=Schema([A, ColSpec(Array(DataType.long), "xs", required=False)])),
    "nested": ModelSignature(
        inputs=Schema(
            [ColSpec(Array(DataType.long), "xs"), ColSpec(PERSON, "p"), ColSpec(Map(DataType.double), "m")]
        )
    ),
    "tensor": ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 3))])),
    "image": ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2, 2))])),
    "free": ModelSignature(inputs=Schema([TensorSpec(np.dtype("int64"), (-1, -1))])),
    "bytes": ModelSignature(inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 2))])),
    "named": ModelSignature(
        inputs=Schema(
            [TensorSpec(np.dtype("int64"), (-1, 2), "ids"), TensorSpec(np.dtype("float32"), (-1,), "w")]
        )
    ),
    "one": ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 3), "x")])),
    "flags": ModelSignature(inputs=Schema([TensorSpec(np.dtype("bool"), (-1, 2))])),
    "narrow": ModelSignature(inputs=Schema([ColSpec("float", "x")])),
    "single": ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 1))])),
    "unnamed text": ModelSignature(inputs=Schema([ColSpec("string")])),
    "times": ModelSignature(inputs=Schema([ColSpec("datetime", "at"), ColSpec("binary", "raw", False)])),
    "optional": ModelSignature(
        inputs=Schema(
            [
                A,
                ColSpec(PERSON, "p", required=False),
                ColSpec(Array(DataType.long), "xs", required=False),
                ColSpec(Map(DataType.double), "m", required=False),
            ]
        )
    ),
    "map": ModelSignature(inputs=Schema([A, ColSpec(Map(DataType.double), "m", required=False)])),
    "any": ModelSignature(inputs=Schema([ColSpec(AnyType(), "v")])),
    "chat": ModelSignature(
        inputs=Schema([ColSpec(Array(PERSON), "messages")]),
        params=ParamSchema([ParamSpec("factor", DataType.long, 1)]),
    ),
    "none": None,
}
AGREE: list[tuple[str, str]] = [
    ("columns", '{"dataframe_split": {"columns": ["b", "a", "z"], "data": [[2.5, 1, 9], [3.5, 2, 9]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a"], "data": [[1]], "index": [7]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2, 3]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["b"], "data": [[1]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a"], "data": [[1]], "dtype": "x"}}'),
    ("columns", '{"dataframe_split": [[1]]}'),
    ("columns", '{"dataframe_records": [{"a": 1, "b": 2}, {"a": 2}]}'),
    ("columns", '{"dataframe_records": [{"a": 1}, {"a": 2}]}'),
    ("columns", '{"dataframe_records": {"a": 1}}'),
    ("columns", '{"dataframe_records": [{"a": 1, "a": 2}]}'),
    ("columns", '{"inputs": {"a": [1, 2], "b": [0.5, 1.5]}}'),
    ("columns", '{"inputs": {"a": 1, "b": 0.5}}'),
    ("columns", '{"inputs": [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]}'),
    ("columns", '{"inputs": [{"a": 1}, {"a": 2, "b": 1.5}]}'),
    ("columns", '{"inputs": [[1, 2]]}'),
    ("columns", '{"instances": [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]}'),
    ("columns", '{"inputs": {"a": [1]}, "junk": 3}'),
    ("columns", '{"inputs": {"a": [1]}, "instances": [{"a": 1}]}'),
    ("columns", '{"data": {"a": [1]}}'),
    ("columns", "[1]"),
    ("columns", ""),
    ("columns", '{"inputs": {"a": [1], "b": [NaN]}}'),
    ("columns", '{"inputs": {"a": [1], "b": [-Infinity]}}'),
    ("narrow", '{"inputs": {"x": [Infinity, "-inf", "nan"]}}'),
    ("columns", '{"inputs": {"a": [NaN]}}'),
    ("columns", "{}"),
    ("columns", "{"),
    ("columns", '{"inputs": null}'),
    ("columns", '{"inputs": 3}'),
    ("columns", '{"inputs": {}}'),
    ("columns", '{"inputs": []}'),
    ("columns", '{"inputs": {"a": []}}'),
    ("columns", '{"inputs": {"b": [1.5]}}'),
    ("columns", '{"inputs": {"a": [1, 2], "b": [0.5]}}'),
    ("columns", '{"inputs": {"a": [1, 2], "b": 0.5}}'),
    ("columns", '{"instances": []}'),
    ("columns", '{"instances": {"a": [1, 2]}}'),
    ("columns", '{"dataframe_split": {"data": [[1, 2.5]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "b"]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "b"], "data": []}}'),
    ("columns", '{"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}'),
    ("columns", '{"dataframe_split": {"columns": ["a"], "index": ["x", "y"], "data": [[1], [3]]}}'),
    ("columns", '{"dataframe_records": []}'),
    ("columns", '{"dataframe_records": [1]}'),
    ("columns", '{"messages": [{"a": 1}]}'),
    ("columns", '{"prompt": "x"}'),
    ("columns", '{"input": "x"}'),
    ("columns", '{"input": "x", "inputs": {"a": [1]}}'),
    ("none", '{"messages": [{"name": "x"}]}'),
    ("none", '{"prompt": "x", "temperature": 0.5}'),
    ("none", '{"input": [1]}'),
    ("chat", '{"messages": [{"name": "x"}]}'),
    ("chat", '{"messages": [{"name": "x", "age": 3}], "factor": 2, "unknown": 3}'),
    ("chat", '{"messages": [{"age": 3}]}'),
    ("chat", '{"messages": []}'),
    ("positional", '{"dataframe_split": {"data": [[1, 2.5]]}}'),
    ("positional", '{"inputs": [[1]]}'),
    ("positional", '{"inputs": [1, 2]}'),
    ("positional", '{"inputs": {"a": [1], "b": [2]}}'),
    ("unnamed text", '{"inputs": ["x", "y"]}'),
    ("unnamed text", '{"inputs": "x"}'),
    ("unnamed text", '{"instances": ["x"]}'),
    ("unnamed text", '{"inputs": [["x"]]}'),
    ("unnamed text", '{"dataframe_split": {"data": [["x"]]}}'),
    ("text", '{"inputs": "x"}'),
    ("text", '{"instances": ["x"]}'),
    ("text", '{"inputs": ["x", "y"]}'),
    ("text", '{"inputs": {"t": "x"}}'),
    ("text", '{"instances": [{"t": "x"}, {"t": "y"}]}'),
    ("text", '{"dataframe_split": {"columns": ["t"], "data": [["x"], ["y"]]}}'),
    ("nested", '{"dataframe_records": [{"xs": [1, 2], "p": {"name": "x", "age": 3}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1, 2], "p": {"name": "x"}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1, 2], "p": {"age": 3}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1, 2], "p": {"name": "x", "z": 1}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": 1, "p": {"name": "x"}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [], "p": {"name": "x"}, "m": {}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1], "p": {"name": 3}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1], "p": {"name": "x"}, "m": {"k": 1}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [1], "p": {"name": "x"}, "m": {"k": 0}}]}'),
    ("nested", '{"dataframe_records": [{"xs": null, "p": {"name": "x"}, "m": {"k": 0.5}}]}'),
    ("nested", '{"dataframe_records": [{"xs": [null], "p": {"name": "x"}, "m": {"k": 0.5}}]}'),
    ("nested", '{"inputs": {"xs": [1], "p": {"name": "x"}, "m": {"k": 0.5}}}'),
    ("nested", '{"inputs": [{"xs": [1], "p": {"name": "x"}, "m": {"k": 0.5}}]}'),
    ("chat", '{"inputs": {"messages": [{"name": "x", "age": 3}]}}'),
    ("optional", '{"dataframe_records": [{"a": 1, "p": null, "xs": null, "m": null}]}'),
    ("optional", '{"dataframe_split": {"columns": ["a", "p"], "data": [[1, null], [2, null]]}}'),
    ("optional", '{"dataframe_records": [{"a": 1}]}'),
    ("map", '{"inputs": {"a": [1, 2]}}'),
    ("map", '{"instances": {"a": [1, 2]}}'),
    ("map", '{"inputs": {"a": 1}}'),
    ("any", '{"inputs": {"v": [1, "x"]}}'),
    ("any", '{"dataframe_records": [{"v": null}]}'),
    ("any", '{"dataframe_records": [{"v": {"a": 1}}]}'),
    ("times", '{"inputs": {"at": ["2026-01-31"]}}'),
    ("times", '{"inputs": {"at": ["31.01.2026"]}}'),
    ("times", '{"dataframe_records": [{"at": "2026-01-31 12:00"}]}'),
    ("one", '{"inputs": [[1, 2, 3]]}'),
    ("one", '{"inputs": {"x": [[1, 2, 3]]}}'),
    ("one", '{"inputs": {"y": [[1, 2, 3]]}}'),
    ("one", '{"instances": [[1, 2, 3]]}'),
    ("one", '{"instances": [{"x": [1, 2, 3]}]}'),
    ("one", '{"dataframe_split": {"columns": ["x"], "data": [[[1, 2, 3]]]}}'),
    ("flags", '{"inputs": [[true, false]]}'),
    ("flags", '{"inputs": [[1, 0]]}'),
    ("single", '{"inputs": [[Infinity], [-Infinity]]}'),
    ("single", '{"dataframe_split": {"columns": ["x"], "data": [[1], [2]]}}'),
    ("tensor", '{"inputs": [[1, 2, 3]]}'),
    ("tensor", '{"inputs": [[Infinity, 2, 3]]}'),
    ("tensor", '{"inputs": [[true, 2, 3]]}'),
    ("tensor", '{"inputs": [[1, 2, 3, 4]]}'),
    ("tensor", '{"inputs": {"x": [[1, 2, 3]]}}'),
    ("tensor", '{"inputs": 1}'),
    ("tensor", '{"inputs": null}'),
    ("tensor", '{"instances": []}'),
    ("tensor", '{"dataframe_records": [{"a": 1, "b": 2, "c": 3}]}'),
    ("tensor", '{"dataframe_split": {"columns": ["a", "b", "c"], "data": []}}'),
    ("tensor", '{"instances": [[1.5, 2, 3], [4, 5, 6]]}'),
    ("tensor", '{"inputs": [[1, 2, 3], [4]]}'),
    ("tensor", '{"inputs": [[1, 2]]}'),
    ("tensor", '{"inputs": [1, 2, 3]}'),
    ("tensor", '{"inputs": []}'),
    ("tensor", '{"inputs": [["1", "2", "3"]]}'),
    ("tensor", '{"inputs": [["a", 2, 3]]}'),
    ("tensor", '{"inputs": [[NaN, 2, 3]]}'),
    ("tensor", '{"inputs": [[null, 2, 3]]}'),
    ("tensor", '{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}'),
    ("tensor", '{"dataframe_split": {"columns": ["x"], "data": [[[1, 2, 3]]]}}'),
    ("tensor", '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}'),
    ("image", '{"inputs": [[[1, 2], [3, 4]]]}'),
    ("image", '{"dataframe_split": {"columns": ["x"], "data": [[[1, 2, 3, 4]]]}}'),
    ("free", '{"inputs": [[1, 2, 3]]}'),
    ("free", '{"inputs": [1, 2, 3]}'),
    ("free", '{"inputs": [["3", 2]]}'),
    ("free", '{"inputs": [["abc", 2]]}'),
    ("free", '{"inputs": [[true, 2]]}'),
    ("free", '{"inputs": [[2.0, 3]]}'),
    ("free", '{"inputs": [[null, 3]]}'),
    ("free", '{"inputs": [[9223372036854775808, 3]]}'),
    ("image", '{"inputs": [[1, 2], [3, 4]]}'),
    ("image", '{"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": [[1, 2, 3, 4]]}}'),
    ("bytes", '{"inputs": [[1, 255]]}'),
    ("bytes", '{"inputs": [[1, 300]]}'),
    ("bytes", '{"inputs": [[1, -1]]}'),
    ("named", '{"inputs": {"ids": [[1, 2]], "w": [0.5]}}'),
    ("named", '{"inputs": {"ids": [[1, 2], [3, 4]], "w": [0.5], "more": [1]}}'),
    ("named", '{"inputs": {"ids": [[1, 2]]}}'),
    ("named", '{"inputs": [[1, 2]]}'),
    ("named", '{"inputs": {"ids": [[1, 2], [3, 4]], "w": [0.5]}}'),
    ("named", '{"instances": [{"ids": [1, 2], "w": 0.5}, {"ids": [3, 4]}]}'),
    ("named", '{"instances": [{"ids": [1, 2], "w": 0.5}, {"ids": [3, 4], "w": 1.5}]}'),
    ("named", '{"dataframe_split": {"columns": ["ids", "w"], "data": [[[1, 2], 0.5]]}}'),
    ("none", '{"inputs": [[1, 2]]}'),
    ("none", '{"inputs": {"a": [1, 2]}}'),
    ("none", '{"inputs": {"input": 1}}'),
    ("none", '{"inputs": []}'),
    ("none", '{"inputs": "x"}'),
    ("none", '{"inputs": [[1, 2], [3]]}'),
    ("none", '{"instances": [{"a": 1}, {"b": 2}]}'),
    ("none", '{"dataframe_split": {"columns": ["a"], "data": [[1], [null]]}}'),
    ("none", '{"dataframe_split": {"columns": ["a"], "data": [[1]]}}'),
    ("none", '{"dataframe_records": [{"a": 1, "b": "x"}]}'),
]


@pytest.mark.parametrize(("kind", "body"), AGREE)
def test_a_body_is_read_as_mlflow_reads_it(kind: str, body: str) -> None:
    signature = SIGNATURES[kind]
    ours, theirs = by_us(signature, body.encode(), "mlflow"), by_mlflow(signature, body.encode())
    assert same(ours, theirs), f"{ours}\n{theirs}"


DIFFER: list[tuple[str, str, bool]] = [
    # MLflow leaves a number of a double property alone only where it is 0 or 1.
    ("nested", '{"dataframe_records": [{"xs": [1], "p": {"name": "x"}, "m": {"k": 5}}]}', True),
    # Columns without names keep no names of the request.
    ("positional", '{"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2.5]]}}', True),
    # A fraction is no integer, and is not cut off.
    ("bytes", '{"inputs": [[1.5, 2]]}', False),
    ("free", '{"inputs": [[1.5, 2]]}', False),
    # Only true, false, 1 and 0 are booleans.
    ("flags", '{"inputs": [["false", "true"]]}', False),
    ("flags", '{"inputs": [[2, 0]]}', False),
    ("flags", '{"inputs": [[null, true]]}', False),
    # Python reads these texts as 10 and 12; in CSV and in columns of integers, neither server does.
    ("columns", '{"inputs": {"a": [1], "b": ["1_0"]}}', False),
    ("columns", '{"inputs": {"a": [1], "b": ["\u0661\u0662"]}}', False),
    ("single", '{"inputs": [["1_0"]]}', False),
    # A finite number does not become an infinite one.
    ("single", '{"inputs": [[1e300]]}', False),
    # A sample without a value is none.
    ("free", '{"inputs": [[]]}', False),
    # From 2^53 on, a float stands for several integers, and an integer beyond 64 bits for none of a model's.
    ("free", '{"inputs": [[1e18, 1]]}', False),
    ("columns", '{"inputs": {"a": [9007199254740992.0]}}', False),
    ("none", '{"inputs": [18446744073709551617]}', False),
    ("text", '{"dataframe_split": {"columns": ["t"], "data": [[18446744073709551617]]}}', False),
    # A column stands once, whether the version takes it or not.
    ("columns", '{"dataframe_split": {"columns": ["a", "z", "z"], "data": [[1, 2, 3]]}}', False),
    # MLflow repeats the only row for each label.
    ("columns", '{"dataframe_split": {"columns": ["a"], "index": [1, 2], "data": [[1]]}}', True),
    # A gap in an optional column is no value of it.
    ("times", '{"dataframe_split": {"columns": ["at", "raw"], "data": [["2026-01-31", null]]}}', True),
    # MLflow refuses these, although nothing is lost.
    ("columns", '{"instances": [{"a": 1}, {"a": 2, "b": 1.5}]}', True),
    ("columns", '{"instances": [{"a": 1, "b": 0.5}, {"a": 2}]}', True),
    ("positional", '{"inputs": [[1, 2.5]]}', True),
    ("positional", '{"instances": [[1, 2.5]]}', True),
    ("image", '{"dataframe_split": {"columns": ["x"], "data": [[[[1, 2], [3, 4]]]]}}', True),
    ("nested", '{"dataframe_records": [{"xs": [1, "2"], "p": {"name": "x"}, "m": {"k": 0.5}}]}', True),
    ("nested", '{"instances": [{"xs": [1], "p": {"name": "x"}, "m": {"k": 0.5}}]}', True),
    ("named", '{"instances": {"ids": [[1, 2], [3, 4]], "w": [0.5]}}', True),
]


@pytest.mark.parametrize(("kind", "body", "is_taken"), DIFFER)
def test_a_body_is_read_otherwise_on_purpose(kind: str, body: str, is_taken: bool) -> None:
    signature = SIGNATURES[kind]
    ours, theirs = by_us(signature, body.encode(), "mlflow"), by_mlflow(signature, body.encode())
    assert (ours is not REFUSED) == is_taken
    assert not same(ours, theirs)


PARAMS = ParamSchema(
    [
        ParamSpec("d", DataType.double, 0.5),
        ParamSpec("n", DataType.long, 1),
        ParamSpec("b", DataType.boolean, False),
        ParamSpec("s", DataType.string, "x"),
        ParamSpec("t", DataType.datetime, "2026-01-01"),
        ParamSpec("l", DataType.long, [1], (-1,)),
        ParamSpec(
            "o",
            Object([Property("x", DataType.double), Property("y", Array(DataType.long), required=False)]),
            {"x": 0.5},
        ),
    ]
)


@pytest.mark.parametrize(
    "params",
    [
        {}, {"d": 2}, {"d": "1"}, {"n": 1.5}, {"n": True}, {"n": 7}, {"b": 1}, {"b": True}, {"s": 1}, {"s": "y"},
        {"t": "2026-02-03"}, {"t": 3}, {"l": [1, 2]}, {"l": 1}, {"l": [1.5]}, {"l": None}, {"d": None},
        {"unknown": 1}, 5, [1], {"o": {"x": 1.5}}, {"o": {"x": 1.5, "y": [1]}}, {"o": {"x": 1.5, "y": None}},
        {"o": {}}, {"o": None}, {"o": {"x": None}}, {"o": {"x": "1"}}, {"o": {"x": 1.5, "z": 1}}, {"o": [1]},
        {"o": {"x": 1.5, "y": [1.5]}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_parameters_are_what_mlflow_makes_of_them(params: Any) -> None:
    signature = ModelSignature(inputs=Schema([A]), params=PARAMS)
    body = json.dumps({"inputs": {"a": [1]}, "params": params}).encode()
    assert same(by_us(signature, body, "mlflow"), by_mlflow(signature, body))
    without = ModelSignature(inputs=Schema([A]))
    assert same(by_us(without, body, "mlflow"), by_mlflow(without, body))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("float", "0.1", np.float32(0.1)),
        ("integer", "3", np.int32(3)),
        ("datetime", '"2026-01-31"', np.datetime64("2026-01-31", "ns")),
    ],
)
def test_a_type_that_json_lacks_reaches_the_model_within_objects_although_mlflow_refuses_it(
    kind: str, text: str, value: np.generic
) -> None:
    typed = Object([Property("x", DataType[kind], required=False)])
    params = ParamSchema([ParamSpec("p", typed, {})])
    signature = ModelSignature(inputs=Schema([ColSpec(typed, "o")]), params=params)
    body = f'{{"inputs": [{{"o": {{"x": {text}}}}}], "params": {{"p": {{"x": {text}}}}}}}'.encode()
    assert by_mlflow(signature, body) == REFUSED
    data, given = by_us(signature, body, "mlflow")
    assert (data["o"][0], given) == ({"x": value}, {"p": {"x": value}})


def test_times_within_a_list_are_times_as_in_mlflow_s_parquet() -> None:
    times = pa.array([["2026-01-31", "1999-12-31T23:59:59.5"]]).cast(pa.list_(pa.timestamp("ns")))
    listed = ModelSignature(inputs=Schema([ColSpec(Array(DataType.datetime), "c")]))
    body = b'{"dataframe_records": [{"c": ["2026-01-31", "1999-12-31T23:59:59.5"]}]}'
    [theirs] = by_mlflow(listed, parquet(c=times), PARQUET)[0]["c"]
    for own in (by_us(listed, parquet(c=times), "strict", PARQUET), by_us(listed, body, "mlflow")):
        assert is_equal(own[0]["c"][0], theirs)
    deep = ModelSignature(inputs=Schema([ColSpec(Map(Array(Array(DataType.datetime))), "c")]))
    inner = by_us(deep, b'{"dataframe_records": [{"c": {"k": [["2026-01-31"], []]}}]}', "mlflow")[0]["c"][0]
    assert (inner["k"][0].dtype, inner["k"][1]) == (np.dtype("datetime64[ns]"), [])


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (Schema([ColSpec(Array(DataType.string), "c")]), {"c": ["a", "b\0"]}),
        (Schema([ColSpec(Array(DataType.binary), "c")]), {"c": ["aGk=", "AAA="]}),
        (Schema([TensorSpec(np.dtype("O"), (-1,), "c")]), {"c": ["a", "b\0"]}),
    ],
    ids=["text", "bytes", "tensor"],
)
def test_a_value_whose_end_numpy_would_cut_off_is_refused(signature: Schema, body: Any) -> None:
    for rules in ("strict", "mlflow"):
        assert (
            by_us(ModelSignature(inputs=signature), json.dumps({"inputs": body}).encode(), rules) == REFUSED
        )
    taken = json.dumps({"inputs": {"c": body["c"][:1]}}).encode()
    assert by_us(ModelSignature(inputs=signature), taken, "strict") != REFUSED


@pytest.mark.parametrize(
    ("kind", "text", "agrees"),
    [
        ("columns", "a,b\n1,2.5\n2,\n", True),
        ("columns", "b,a\n2.5,1\n", True),
        ("columns", "a,b\n,2.5\n", True),
        ("columns", "a,b\n2.0,1\n", True),
        ("columns", "a,b\n2.5,1\n", True),
        ("columns", "a,b\nx,1\n", True),
        ("columns", 'a,b\n"1",NA\n', True),
        ("columns", "a,b\n1,inf\n", True),
        ("columns", "a,b\n1,-0\n", True),
        ("columns", "a,b\n1,1_0\n", True),
        ("columns", "a,b\n1,\u0661\n", True),
        ("columns", "\n\na,b\n1,2\n", True),
        ("columns", "a,b\n1_000,1\n", True),
        ("columns", "a,b\n9223372036854775808,1\n", True),
        ("columns", "a,b,z\n1,2,3\n", True),
        ("columns", "a,b\n1,2\n3\n", True),
        ("columns", "a\n1\n", True),
        ("columns", "b\n1\n", True),
        ("columns", "a,b\n", True),
        ("columns", "", True),
        ("nested", "xs,p,m\n[1],x,y\n", True),
        ("times", "at\n2026-01-31\n", True),
        ("none", "a,b\n1,x\n", True),
        ("columns", "a,b\n1\n", False),  # if all rows are short, the header is wrong
        ("columns", "a,b\n1,2,3\n", False),  # MLflow takes the first cell as the name of the row
        ("text", "t\nNA\n", False),  # a missing text is None, as in JSON, and not NaN
        ("times", "at,raw\n2026-01-31,aGk=\n", True),
        ("attached", "a\n1\n", True),
        ("attached", "a,raw\n1,aGk=\n", False),  # MLflow gives the model the text of the bytes
        ("lists", "a\n1\n", False),  # MLflow reads no CSV for them, even without the optional column
        ("lists", "a,xs\n1,[1]\n", True),
        ("positional", "x,y\n1,2\n", False),  # columns without names keep no names of the request
    ],
)
def test_a_table_of_text_is_read_as_mlflow_reads_it(kind: str, text: str, agrees: bool) -> None:
    signature = SIGNATURES[kind]
    ours = by_us(signature, text.encode(), "mlflow", "text/csv")
    assert same(ours, by_mlflow(signature, text.encode(), "text/csv")) == agrees
    tensor = SIGNATURES["tensor"]
    assert by_us(tensor, text.encode(), "mlflow", "text/csv") == by_mlflow(tensor, text.encode(), "text/csv")


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


WIDER = "a number of another type is taken where it fits"
PARQUET_COLUMNS: list[tuple[str, Any, str]] = [
    ("long", [1, 2], ""),
    ("long", pa.array([1, 2], pa.int32()), ""),
    ("long", [1.5], ""),
    ("long", [1, None], ""),
    ("long", [1.0], WIDER),
    ("integer", pa.array([1], pa.int32()), ""),
    ("integer", [1], WIDER),
    ("integer", [3_000_000_000], ""),
    ("float", pa.array([1.5], pa.float32()), ""),
    ("float", [1.5], WIDER),
    ("double", [1], ""),
    ("double", pa.array([1.5], pa.float32()), ""),
    ("double", pa.array(["1.5"]).cast(pa.decimal128(9, 1)), ""),
    ("double", [1.5, None], ""),
    ("double", ["1.5"], ""),
    ("boolean", [True, False], ""),
    ("boolean", [1], ""),
    ("boolean", [True, None], "null is no boolean where the column is required"),
    ("string", ["a", None], ""),
    ("string", [1], ""),
    ("datetime", pa.array(["2026-01-31T12:00:00.123456789"]).cast(pa.timestamp("ns")), ""),
    ("datetime", pa.array(["2026-01-31"]).cast(pa.date32()), ""),
    ("datetime", pa.array(["2026-01-31T12:00:00Z"]).cast(pa.timestamp("us", "UTC")), ""),
    ("binary", [b"hi"], ""),
    ("binary", ["aGk="], "text in a binary column is base64"),
]


@pytest.mark.parametrize(("kind", "values", "difference"), PARQUET_COLUMNS)
def test_a_column_of_a_parquet_body_is_what_mlflow_makes_of_it(
    kind: str, values: Any, difference: str
) -> None:
    signature, body = ModelSignature(inputs=Schema([ColSpec(kind, "c")])), parquet(c=values)
    ours, theirs = by_us(signature, body, "strict", PARQUET), by_mlflow(signature, body, PARQUET)
    assert same(ours, theirs) == (not difference), f"{ours}\n{theirs}"


def test_a_tensor_of_a_parquet_body_is_what_mlflow_makes_of_it() -> None:
    for columns in ({"a": [1.0], "b": [2.0], "c": [3.0]}, {"x": [[1.0, 2.0, 3.0]]}, {"x": [[1.0, 2.0]]}):
        body = parquet(**columns)
        ours, theirs = (
            by_us(SIGNATURES["tensor"], body, "strict", PARQUET),
            by_mlflow(SIGNATURES["tensor"], body, PARQUET),
        )
        assert same(ours, theirs), f"{ours}\n{theirs}"


@pytest.mark.parametrize("kind", ["integer", "long"])
def test_an_optional_column_of_integers_with_gaps_is_refused_as_by_mlflow_in_every_form(kind: str) -> None:
    signature = ModelSignature(inputs=Schema([ColSpec(kind, "c", required=False), B]))
    forms = [
        '{"dataframe_split": {"columns": ["c"], "data": [[1], [null]]}}',
        '{"dataframe_records": [{"c": 1}, {"c": null}]}',
        '{"dataframe_records": [{"c": 1}, {"b": 1}]}',
        '{"inputs": {"c": [1, null]}}',
        '{"instances": [{"c": 1}, {"c": null}]}',
    ]
    for body in forms:
        assert by_mlflow(signature, body.encode()) == by_us(signature, body.encode(), "mlflow") == REFUSED
    gaps = parquet(c=pa.array([1, None], pa.int32() if kind == "integer" else pa.int64()))
    assert by_mlflow(signature, gaps, PARQUET) == by_us(signature, gaps, "strict", PARQUET) == REFUSED


def test_an_optional_column_of_booleans_keeps_its_gaps_as_in_mlflow_s_parquet() -> None:
    signature = ModelSignature(inputs=Schema([ColSpec("boolean", "c", required=False), B]))
    gaps = parquet(c=[True, None])
    theirs = by_mlflow(signature, gaps, PARQUET)
    assert theirs[0]["c"].tolist() == [True, None]
    assert same(by_us(signature, gaps, "strict", PARQUET), theirs)
    for body in ('{"inputs": {"c": [true, null]}}', '{"dataframe_records": [{"c": true}, {"c": null}]}'):
        assert same(by_us(signature, body.encode(), "strict"), theirs)
