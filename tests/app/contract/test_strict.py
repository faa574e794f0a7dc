"""`/predict` takes a value as it is or refuses it, and says which row, column and value, and what was expected."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract import (
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Param,
    TensorField,
    TensorsContract,
)
from app.contract.documents import read, read_json
from app.contract.payloads import Payload, to_payload
from app.server_errors import InputError, InputTypeError, ModelyardError, TooLargeError
from app.worker_record import decode_record, encode_record
from tests.pool_samples import record
from workers.job_inputs import decode

BIG = 2**53 + 1
TAKEN: dict[str, list[tuple[Any, Any]]] = {
    "double": [(1, 1), (1.5, 1.5), (None, None), (BIG, float(BIG))],
    "float": [(1, 1), (1.5, 1.5), (None, None), (3.4e38, 3.4e38)],
    "long": [(1, 1), (2.0, 2), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63))],
    "integer": [(1, 1), (-(2**31), -(2**31))],
    "boolean": [(True, True), (False, False)],
    "string": [("3", "3"), ("", ""), (None, None)],
    "datetime": [("1970-01-01T00:00:00.000000001", 1), ("1970-01-02", 86_400_000_000_000), (None, None)],
    "binary": [("aGk=", b"hi"), ("", b"")],
}
REFUSED: dict[str, list[Any]] = {
    "double": ["3", True, [1], {}],
    "float": ["3", True, 1e39, 3.5e38],
    "long": [1.5, "3", True, None, 2**63, float(2**53), -(2**63) - 1],
    "integer": [1.5, 3_000_000_000, None, True],
    "boolean": [1, 0, "true", "false", None, 1.0],
    "string": [1, True, 1.5, ["x"]],
    "datetime": [1, 1.5, "3", "abc", True, "2026-02-31", "2026-01-31T12:00:00Z", "1500-01-01", "2300-01-01"],
    "binary": [1, "abc", "a b!", True, None],
}


def payload(
    kind: str, value: Any, *, required: bool = True, name: str | None = "c", **of_contract: Any
) -> Payload:
    contract = ColumnsContract((Column(name, ColumnType(kind), required),), **of_contract)
    good = TAKEN[kind][0][0]
    body = json.dumps({"dataframe_records": [{"c": good}, {"c": value}]}).encode()
    return to_payload(read_json(body, "strict"), contract, 10, "strict")


@pytest.mark.parametrize(("kind", "pair"), [(kind, pair) for kind, pairs in TAKEN.items() for pair in pairs])
def test_a_value_of_the_type_arrives_as_it_is(kind: str, pair: tuple[Any, Any]) -> None:
    [[_, arrived]] = decode(payload(kind, pair[0]).data)
    assert arrived == pair[1]


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, each) for kind, values in REFUSED.items() for each in values]
)
def test_any_other_value_is_refused_and_the_error_names_row_column_value_and_type(
    kind: str, value: Any
) -> None:
    with pytest.raises(InputTypeError) as refused:
        payload(kind, value)
    for part in ("row 1", "column 'c'", repr(value), "expected", kind):
        assert part in refused.value.detail


def test_a_missing_value_is_taken_where_the_column_is_optional_and_refused_where_the_version_forbids_it() -> (
    None
):
    for kind in ("double", "string", "boolean", "datetime"):
        assert decode(payload(kind, None, required=False).data)[0][1] is None
    with pytest.raises(InputTypeError, match="may not be missing"):
        payload("double", None, allows_missing=False)
    with pytest.raises(InputTypeError, match="declare it as double"):
        payload("long", None, required=False)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3]]}}',
            "row 1 has 1 values; expected 2",
        ),
        ('{"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}', "names a column twice"),
        ('{"dataframe_split": {"data": [[1, 2]]}}', "lacks columns"),
        ('{"dataframe_records": [{"a": 1, "b": 2}, {"a": 1}]}', "row 1 lacks the column 'b'"),
        ('{"dataframe_records": [{"a": 1}]}', "the column 'b' is missing"),
        ('{"dataframe_records": []}', "no row"),
        ('{"inputs": {"a": [1, 2], "b": [1]}}', "differ in length"),
        ('{"inputs": [[1, 2]]}', "a list of objects"),
        ('{"inputs": {"a": 1, "b": 2}, "params": {"x": 1}}', "takes no parameter 'x'"),
        ('{"inputs": {"a": 1, "b": 2}, "more": 1}', "exactly one key"),
        ('{"inputs": {"a": 1, "b": 2}', "not JSON"),
        ('{"dataframe_records": [{"a": 1, "b": "\\ud800"}]}', "column 'b'"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_the_error_says_why(body: str, text: str) -> None:
    contract = ColumnsContract((Column("a", ColumnType("long")), Column("b", ColumnType("double"))))
    with pytest.raises(InputError) as refused:
        to_payload(read_json(body.encode(), "strict"), contract, 10, "strict")
    assert text in refused.value.detail


def test_nested_values_are_refused_with_their_place() -> None:
    person = ColumnType("object", properties=(Column("age", ColumnType("long")),))
    contract = ColumnsContract((Column("people", ColumnType("array", person)),))
    body = b'{"dataframe_records": [{"people": [{"age": 1}]}, {"people": [{"age": 1}, {"age": "x"}]}]}'
    with pytest.raises(InputTypeError, match=r"row 1, column 'people'\[1\]\.age: got 'x'"):
        to_payload(read_json(body, "strict"), contract, 10, "strict")


OBJECT = (
    Column("price", ColumnType("double")),
    Column(
        "tags",
        ColumnType("array", ColumnType("object", properties=(Column("id", ColumnType("long")),))),
        False,
    ),
)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            '{"options": {"price": "x"}}',
            "parameter 'options'.price: got 'x'; expected a finite number (double)",
        ),
        (
            '{"options": {"price": 1, "tags": [{"id": 1}, {"id": 1.5}]}}',
            "parameter 'options'.tags[1].id: got 1.5",
        ),
        ('{"options": {"tags": []}}', "its property price is missing"),
        ('{"options": {"price": 1, "more": 2}}', "parameter 'options'.more: got 2; expected no property"),
        ('{"options": null}', "parameter 'options': got None; expected an object"),
        ('{"options": [1]}', "parameter 'options': got [1]; expected an object"),
        ('{"factor": 1.5}', "parameter 'factor': got 1.5; expected long"),
        ('{"other": 1}', "takes no parameter 'other'; expected options (object {price: double, tags"),
        ('{"anything": [36893488147419103232]}', "more than 64 bits"),
        ('{"anything": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_with_their_place(params: str, text: str) -> None:
    taken = (Param("options", "any", properties=OBJECT), Param("factor", "long"), Param("anything", "any"))
    with pytest.raises(InputError) as refused:
        to_payload(
            read_json(f'{{"data": [1], "params": {params}}}'.encode(), "strict"),
            AnyContract(taken),
            1,
            "strict",
        )
    assert text in refused.value.detail


def test_tensors_are_refused_with_their_place_and_more_rows_than_the_limit() -> None:
    contract = TensorsContract((TensorField("ids", "uint8", (-1, 2)), TensorField("on", "bool", (-1,))))
    for body, text in (
        (b'{"inputs": {"ids": [[1, 2], [3, 300]], "on": [true, false]}}', "row 1, value [1][1]: got 300"),
        (b'{"inputs": {"ids": [[1, 2]], "on": [1]}}', "tensor 'on', row 0"),
        (b'{"inputs": {"ids": [[1, 2]], "on": [true, false]}}', "differ in their first dimension"),
        (b'{"inputs": {"ids": [[1, 2, 3]], "on": [true]}}', "shape (1, 3)"),
        (b'{"inputs": {"ids": [[1, 2]]}}', "'on' is missing"),
        (b'{"dataframe_split": {"columns": 1.5, "data": [[1, true]]}}', 'the lists "data"'),
        (b'{"dataframe_split": {"columns": "ab", "data": [[1, true]]}}', 'the lists "data"'),
    ):
        with pytest.raises(InputError) as refused:
            to_payload(read_json(body, "strict"), contract, 10, "strict")
        assert text in refused.value.detail
    with pytest.raises(TooLargeError):
        to_payload(read_json(b'{"inputs": [1, 2, 3]}', "strict"), AnyContract(), 2, "strict")


trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "data", "columns"]), inner)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["data", "inputs", "instances", "dataframe_split", "dataframe_records"]), trees, trees)
def test_whatever_json_comes_it_is_a_job_or_an_error_of_ours(key: str, value: Any, params: Any) -> None:
    body = json.dumps({key: value, "params": params}).encode()
    nested = ColumnType("array", ColumnType("map", ColumnType("datetime")))
    for contract in (
        ColumnsContract((Column("a", ColumnType("long")), Column("b", ColumnType("binary"), False))),
        ColumnsContract((Column(None, ColumnType("float")), Column(None, nested))),
        TensorsContract((TensorField("a", "float16", (-1, -1)), TensorField("b", "str", (2,)))),
        TensorsContract((TensorField(None, "int64", (-1,)),), allows_missing=True),
        AnyContract(),
    ):
        for rules in ("strict", "mlflow"):
            with suppress(ModelyardError):
                to_payload(read_json(body, rules), contract, 100, rules)


@pytest.mark.parametrize(
    "contract",
    [
        ColumnsContract(
            (Column("a", ColumnType("array", ColumnType("long"))), Column("b", ColumnType("any"), False)),
            (Param("options", "any", properties=OBJECT),),
        ),
        TensorsContract((TensorField("a", "str", (-1,)), TensorField("b", "bool", (-1, -1)))),
        AnyContract(),
    ],
    ids=["columns", "tensors", "any"],
)
def test_a_worker_record_carries_every_kind_of_contract(contract: Any) -> None:
    assert decode_record(encode_record(record(input=contract))).input == contract


def test_a_worker_record_of_an_older_release_has_a_plain_tensor() -> None:
    written = json.loads(encode_record(record()))
    del written["input"]["kind"]
    assert decode_record(json.dumps(written).encode()).input == record().input


def test_a_numpy_file_is_the_tensor_that_it_holds_or_refused_with_its_place() -> None:
    contract = TensorsContract((TensorField(None, "bool", (-1, 2)),))

    def sent(array: Any, of: TensorsContract = contract) -> Any:
        file = io.BytesIO()
        np.save(file, array)
        document = read(b"application/x-npy", file.getvalue(), "strict")
        [[dtype, shape, data]] = decode(to_payload(document, of, 10, "strict").data)
        return np.frombuffer(data, dtype).reshape(shape).tolist()

    assert sent(np.array([[True, False]])) == [[True, False]]
    numbers = TensorsContract((TensorField(None, "float64", (-1, -1)),), allows_missing=True)
    assert sent(np.array([[1, 2, 3]], ">i2"), numbers) == [[1.0, 2.0, 3.0]]
    assert np.isnan(sent(np.array([[np.nan]]), numbers)[0][0])
    with pytest.raises(InputError, match=r"value \[0\]\[1\]: got .*inf"):
        sent(np.array([[1.0, np.inf]]), numbers)
    with pytest.raises(InputTypeError, match="expected true or false"):
        sent(np.array([[1, 0]]))
    with pytest.raises(InputError, match="shape"):
        sent(np.array([True, False]))
