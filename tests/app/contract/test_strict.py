"""`/predict` takes a value as it is or refuses it, and says which row, column and value, and what was expected."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import Any

import msgspec
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
from app.server_errors import InputError, InputTypeError, ModelyardError, TooLargeError, UnsupportedTypeError
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
        ('{"inputs": {"a": ' + "9" * 5000 + ', "b": 2}}', "a number has too many digits"),
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
        (
            b'{"dataframe_split": {"columns": 1.5, "data": [[1, true]]}}',
            "columns of dataframe_split must be lists",
        ),
        (
            b'{"dataframe_split": {"columns": "ab", "data": [[1, true]]}}',
            "columns of dataframe_split must be lists",
        ),
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


@pytest.mark.parametrize("dtype", [complex, np.longdouble, "M8[s]", "V4", "S1", [("a", "f4"), ("b", "f4")]])
def test_a_numpy_file_of_values_that_json_lacks_is_refused_without_a_signature_too(dtype: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(2, dtype))
    with pytest.raises(InputTypeError, match=r"the file holds .*; expected numbers"):
        read(b"application/x-npy", file.getvalue(), "strict")


def test_raw_bytes_are_the_rows_of_a_tensor_whose_rows_have_one_size() -> None:
    contract = TensorsContract((TensorField("a", "float32", (-1, 2)), TensorField("b", "int16", (-1,))))
    numbers = np.array([[1.5, 2], [3, 4]], "<f4").tobytes(), np.array([5, 6], "<i2").tobytes()
    body = msgspec.msgpack.encode({"inputs": dict(zip("ab", numbers, strict=True))})
    given = decode(to_payload(read(b"application/msgpack", body, "strict"), contract, 10, "strict").data)
    assert given == [["float32", [2, 2], numbers[0]], ["int16", [2], numbers[1]]]

    def sent(body: bytes, dtype: str, *shape: int) -> Any:
        one = TensorsContract((TensorField(None, dtype, shape),))
        document = read(b"application/octet-stream", body, "strict")
        return decode(to_payload(document, one, 10, "strict").data)

    assert sent(numbers[0], "float32", -1, 2) == [["float32", [2, 2], numbers[0]]]
    for dtype, *shape in (("float32", -1, 3), ("float32", -1, -1), ("bool", -1), ("str", -1)):
        with pytest.raises(InputError, match="16 bytes do not form whole rows"):
            sent(numbers[0], str(dtype), *map(int, shape))
    with pytest.raises(InputError, match="finite"):
        sent(np.array([np.nan], "<f4").tobytes(), "float32", -1)
    with pytest.raises(InputTypeError, match="signature"):
        to_payload(read(b"application/octet-stream", b"1", "strict"), AnyContract(), 10, "strict")


@pytest.mark.parametrize(
    "body", ['{"inputs": {"a": 1}}', '{"dataframe_split": {"data": [[1]]}}', '{"data": "a"}']
)
def test_what_is_no_list_is_refused_before_the_queue_where_type_hints_take_lists(body: str) -> None:
    with pytest.raises(InputError, match="not a list; expected a list of what the model's type hints say"):
        to_payload(read_json(body.encode(), "strict"), AnyContract(is_own=True), 10, "strict")


@pytest.mark.parametrize("content_type", [b"application/msgpack", b"application/x-msgpack"])
def test_extensions_of_messagepack_are_refused_before_a_worker_reads_them(content_type: bytes) -> None:
    body = msgspec.msgpack.encode({"inputs": [msgspec.msgpack.Ext(1, b"12345678")]})
    with pytest.raises(InputError, match="a MessagePack extension of type 1"):
        read(content_type, body, "strict")


@pytest.mark.parametrize(
    "body",
    [
        '{"data": [1], "data": [2]}',
        '{"inputs": [{"a": 1, "a": 2}]}',
        '{"inputs": {"a": {"b": [{"c": 1, "c": "12:30"}]}}}',
        '{"dataframe_split": {"columns": ["a"], "data": [[1]], "data": [[2]]}}',
        r'{"d\u0061ta": [1], "data": [2]}',
    ],
)
def test_a_key_that_an_object_has_twice_is_refused_unless_the_rules_are_mlflow_s(body: str) -> None:
    with pytest.raises(InputError, match="twice in one object"):
        read_json(body.encode(), "strict")
    assert read_json(b'{"inputs": [1], "inputs": [2]}', "mlflow").value == [2]


def test_colons_in_text_are_no_keys() -> None:
    body = b'{"inputs": [{"a:b": "12:30", "c": ["x:y", {"d": ":"}]}], "params": {"e": ":::"}}'
    assert read_json(body, "strict").value == [{"a:b": "12:30", "c": ["x:y", {"d": ":"}]}]


CSV_COLUMNS = ColumnsContract((Column("n", ColumnType("long")), Column("t", ColumnType("string"))))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeffn,t\r\n1,x\r\n", [[1], ["x"]]),
        ("n,t\r1,x\r2,y\r", [[1, 2], ["x", "y"]]),
        ('t,n\n"a\r\nb, ""c""",1\n\n', [[1], ['a\r\nb, "c"']]),
        ("n,t,\n1,,\n", [[1], [None]]),
        ("n,t\n1,NA\n2,null\n", [[1, 2], ["NA", "null"]]),
        ("n,t\n1," + "x" * 200_000, [[1], ["x" * 200_000]]),
    ],
)
def test_csv_is_read_in_each_usual_dialect_and_text_stays_text(text: str, rows: list[Any]) -> None:
    document = read(b"text/csv", text.encode(), "strict")
    assert decode(to_payload(document, CSV_COLUMNS, 10, "strict").data) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n;t\n1;x\n", "the first row names the columns ['n;t'], and 'n' is missing"),
        ("1,x\n", "the first row names the columns ['1', 'x'], and 'n' is missing"),
        ("n, t\n1,x\n", "['n', ' t'], and 't' is missing"),
        ("n,t\n1,x,\n", "row 0 has 3 values; expected 2"),
        ("n,t,n\n1,x,2\n", "names a column twice"),
        ("n,t\n\u0661,x\n", "row 0, column 'n': got '\u0661'"),
        ('n,t\n1,"x\n', "not CSV"),
    ],
)
def test_csv_that_does_not_fit_is_refused_and_the_error_shows_its_header(text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        to_payload(read(b"text/csv", text.encode(), "strict"), CSV_COLUMNS, 10, "strict")
    assert said in refused.value.detail


def test_csv_without_a_header_is_refused_where_its_type_says_so() -> None:
    with pytest.raises(UnsupportedTypeError, match="expected a header row"):
        read(b"text/csv; header=absent", b"1,x\n", "strict")
