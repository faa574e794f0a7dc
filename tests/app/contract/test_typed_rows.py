"""Rows with the columns' types are read in one pass, and give what the general reader gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.contract import Column, ColumnsContract, ColumnType
from app.contract.documents import read_json
from app.contract.payloads import rows_payload, to_payload
from app.server_errors import ModelyardError, TooLargeError

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


def body(rows: Any, names: Any = NAMES, **more: Any) -> bytes:
    return json.dumps({"dataframe_split": {"columns": names, "data": rows}, **more}).encode()


@pytest.mark.parametrize("place", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("allows_missing", [True, False])
def test_a_typed_row_gives_the_input_of_the_general_reader(place: int, allows_missing: bool) -> None:
    contract = ColumnsContract(CONTRACT.columns, allows_missing=allows_missing)
    for value in VALUES:
        posted = body([ROW, (*ROW[:place], value, *ROW[place + 1 :])])
        typed = rows_payload(posted, contract, 10)
        if typed:
            assert typed == to_payload(read_json(posted, "strict"), contract, 10, "strict"), value
        elif value in (ROW[place], None) or type(value) is type(ROW[place]):
            with pytest.raises(ModelyardError):
                to_payload(read_json(posted, "strict"), contract, 10, "strict")


def test_rows_of_the_columns_types_are_read_in_one_pass() -> None:
    typed = rows_payload(body([ROW, (None, None, 0, 0, None, False)]), CONTRACT, 10)
    assert typed
    assert typed.n_samples == 2


@pytest.mark.parametrize(
    "other",
    [
        body([ROW], list(reversed(NAMES))),
        body([ROW], NAMES[1:]),
        body([ROW], params={}),
        body([]),
        body([ROW[1:]]),
        json.dumps({"dataframe_records": [dict(zip(NAMES, ROW, strict=True))]}).encode(),
        b'{"dataframe_split": ',
    ],
    ids=["order", "fewer columns", "params", "no rows", "short row", "records", "no JSON"],
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
        assert typed == to_payload(read_json(posted, "strict"), CONTRACT, 10, "strict")
        assert rows_payload(body([ROW], [*NAMES[:-1], "another"]), CONTRACT, 10) is None
        assert rows_payload(body([ROW], dict.fromkeys(NAMES)), CONTRACT, 10) is None
