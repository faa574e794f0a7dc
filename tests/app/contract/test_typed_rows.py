"""Rows with the columns' types are read in one pass, and give what the general reader gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.contract import Column, ColumnsContract, ColumnType
from app.contract.documents import read_json
from app.contract.payloads import Payload, rows_payload, to_payload
from app.server_errors import BodyKeyError, ModelyardError, TooLargeError

KINDS = ("double", "float", "long", "integer", "string", "boolean")
NAMES = [f"a {kind}" for kind in KINDS]
CONTRACT = ColumnsContract(
    tuple(Column(name, ColumnType(kind)) for name, kind in zip(NAMES, KINDS, strict=True))
)
ROW = (0.5, 1.5, 2, 3, "text", True)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -(2**31),
    2**31,
    2**63,
    10**30,
    2**53 + 1,
    1.0,
    0.1,
    3.5e38,
    1e300,
    "",
    "1",
    [1],
    {},
)


FORMS = ("dataframe_split", "with an index", "dataframe_records", "inputs", "instances")


def body(rows: Any, names: Any = NAMES, **more: Any) -> bytes:
    return json.dumps({"dataframe_split": {"columns": names, "data": rows}, **more}).encode()


def spell(form: str, rows: list[Any]) -> bytes:
    """The rows in one of `FORMS`."""
    if form == "dataframe_split":
        return body(rows)
    if form == "with an index":
        index = list(range(len(rows)))
        return json.dumps({"dataframe_split": {"index": index, "columns": NAMES, "data": rows}}).encode()
    return json.dumps({form: [dict(zip(NAMES, row, strict=True)) for row in rows]}).encode()


def general(posted: bytes, contract: ColumnsContract = CONTRACT) -> Payload:
    return to_payload(read_json(posted, "strict"), contract, 10, "strict")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("allows_missing", [True, False])
@pytest.mark.parametrize("required", [True, False])
def test_a_typed_row_gives_the_input_of_the_general_reader(
    place: int, allows_missing: bool, required: bool, form: str
) -> None:
    columns = [Column(each.name, each.type, required) for each in CONTRACT.columns]
    contract = ColumnsContract(tuple(columns), allows_missing=allows_missing)
    for value in VALUES:
        posted = spell(form, [ROW, (*ROW[:place], value, *ROW[place + 1 :])])
        typed = rows_payload(posted, contract, 10)
        if typed:
            assert typed == general(posted, contract), value
        elif required and (value in (ROW[place], None) or type(value) is type(ROW[place])):
            with pytest.raises(ModelyardError):
                general(posted, contract)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_columns_types_are_read_in_one_pass(form: str) -> None:
    rows = [ROW, (None, None, 0, 0, "a: b, c: d", False), (None, None, 0, 0, None, False)]
    posted = spell(form, rows)
    typed = rows_payload(posted, CONTRACT, 10)
    assert typed
    assert typed.n_samples == 3
    assert typed == general(posted)


def test_optional_columns_are_read_in_one_pass_where_all_are_there() -> None:
    contract = ColumnsContract(tuple(Column(each.name, each.type, False) for each in CONTRACT.columns))
    posted = body([ROW, (None, None, 0, 0, None, None)])
    typed = rows_payload(posted, contract, 10)
    assert typed
    assert typed == general(posted, contract)
    fewer = body([ROW[1:]], NAMES[1:])
    assert rows_payload(fewer, contract, 10) is None
    assert general(fewer, contract).n_samples == 1


def test_records_may_name_the_columns_in_any_order() -> None:
    posted = json.dumps({"inputs": [dict(reversed([*zip(NAMES, ROW, strict=True)]))]}).encode()
    typed = rows_payload(posted, CONTRACT, 10)
    assert typed
    assert typed == general(posted)


@pytest.mark.parametrize("name", ["ratio a:b", "Größe", "x y", "", "columns"])
def test_records_of_columns_with_odd_names_are_read_in_one_pass(name: str) -> None:
    contract = ColumnsContract((Column(name, ColumnType("string")),))
    posted = json.dumps({"inputs": [{name: "a:b"}, {name: "c"}]}, ensure_ascii=False).encode()
    typed = rows_payload(posted, contract, 10)
    assert typed
    assert typed == general(posted, contract)


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "new\nline"])
def test_records_whose_names_are_escaped_are_left_to_the_general_reader(name: str) -> None:
    contract = ColumnsContract((Column(name, ColumnType("string")),))
    posted = json.dumps({"inputs": [{name: "text"}]}).encode()
    assert rows_payload(posted, contract, 10) is None
    assert general(posted, contract).n_samples == 1


RECORD = json.dumps(dict(zip(NAMES, ROW, strict=True)))
TWICE = RECORD[:-1] + ', "a double": 0.25}'


def test_a_name_of_a_table_that_is_spelt_in_two_ways_is_refused() -> None:
    posted = body([ROW])[:-2] + b', "d\\u0061ta": [[0.25, 1.5, 2, 3, "text", true]]}}'
    assert rows_payload(posted, CONTRACT, 10) is None
    with pytest.raises(BodyKeyError, match="'data' twice"):
        general(posted)
    escaped = body([(0.5, 1.5, 2, 3, '\u00e9: \\u0061":', True)])
    assert general(escaped).n_samples == 1
    assert rows_payload(escaped, CONTRACT, 10) in (None, general(escaped))


@pytest.mark.parametrize(
    "record",
    [TWICE, TWICE.replace("text", "a\\u003ab"), TWICE.replace("text", "\\u003A"), TWICE.replace("text", ":")],
    ids=["plain", "escaped colon", "escaped colon in capitals", "colon"],
)
def test_a_name_that_a_record_has_twice_is_refused(record: str) -> None:
    posted = f'{{"dataframe_records": [{record}]}}'.encode()
    assert rows_payload(posted, CONTRACT, 10) is None
    with pytest.raises(BodyKeyError, match="'a double' twice"):
        general(posted)


@pytest.mark.parametrize(
    "other",
    [
        body([ROW], list(reversed(NAMES))),
        body([ROW], NAMES[1:]),
        body([ROW], params={}),
        body([]),
        body([ROW[1:]]),
        b'{"dataframe_split": ',
        spell("with an index", [ROW]).replace(b'"index"', b'"indexes"'),
        spell("with an index", [ROW]).replace(b'"index"', b'"index": 1, "index"'),
        spell("inputs", []),
        spell("inputs", [ROW])[:-1] + b', "instances": []}',
        spell("inputs", [ROW]).replace(b'"a long"', b'"along"'),
        spell("inputs", [ROW]).replace(b'"a long"', b'"another": 1, "a long"'),
        b'{"data": [%s]}' % RECORD.encode(),
        b"[]",
        b"{}",
    ],
    ids=[
        *("order", "fewer columns", "params", "no rows", "short row", "no JSON", "odd key", "index twice"),
        *("no records", "two keys", "lacking name", "unknown name", "data", "list", "empty"),
    ],
)
def test_other_bodies_are_left_to_the_general_reader(other: bytes) -> None:
    assert rows_payload(other, CONTRACT, 10) is None


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(TooLargeError, match="11 rows in one request; at most 10"):
        rows_payload(body([ROW] * 11), CONTRACT, 10)


def test_the_names_of_each_body_are_read_whatever_the_last_one_spelt() -> None:
    spaced = body([ROW]).replace(b", ", b" , ")
    for posted in (body([ROW]), spaced, body([ROW])):
        typed = rows_payload(posted, CONTRACT, 10)
        assert typed
        assert typed == general(posted)
        assert rows_payload(body([ROW], [*NAMES[:-1], "another"]), CONTRACT, 10) is None
        assert rows_payload(body([ROW], dict.fromkeys(NAMES)), CONTRACT, 10) is None
