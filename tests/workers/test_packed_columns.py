"""The columns of a table with many rows travel as bytes; the model sees the frame that it would see of single rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pandas as pd
import pytest

from app.contract import Column, ColumnsContract, ColumnType
from app.contract.documents import Document
from app.contract.packed_columns import PACKED_ROWS
from app.contract.payloads import rows_payload, to_payload
from workers.job_inputs import decode, to_input

KINDS = ("boolean", "integer", "long", "float", "double", "string", "datetime")
CONTRACT = ColumnsContract(tuple(Column(each, ColumnType(each)) for each in KINDS))
MAYBE = ColumnsContract((Column("maybe", ColumnType("boolean"), required=False),))


def row(place: int) -> list[Any]:
    is_gap = place % 3 == 0
    return [
        place % 2 == 0,
        -place,
        2**53 + place,
        None if is_gap else place / 7,
        None if is_gap else place / 3,
        f"text {place}",
        "2026-11-29T10:00:00",
    ]


def data(rows: list[Any], contract: ColumnsContract) -> Any:
    names = [str(each.name) for each in contract.columns]
    value = {"columns": names, "data": rows}
    return decode(to_payload(Document("dataframe_split", value), contract, 1000, "strict").data)


@pytest.mark.parametrize("n_rows", [PACKED_ROWS, 200])
def test_a_table_is_the_frame_of_its_single_rows(n_rows: int) -> None:
    rows = [row(place) for place in range(n_rows)]
    whole = data(rows, CONTRACT)
    assert [type(each) is bytes for each in whole] == [kind not in ("string", "datetime") for kind in KINDS]
    single = [data([each], CONTRACT) for each in rows]
    expected = to_input(single, CONTRACT)
    pd.testing.assert_frame_equal(to_input([whole], CONTRACT), expected)
    pd.testing.assert_frame_equal(to_input([*single[:2], data(rows[2:], CONTRACT)], CONTRACT), expected)


def test_a_model_may_write_to_its_frame() -> None:
    frame = to_input([data([row(place) for place in range(PACKED_ROWS)], CONTRACT)], CONTRACT)
    frame.loc[0, "double"] = 5.0
    assert frame["double"][0] == 5.0


def test_a_body_of_typed_rows_travels_as_the_same_bytes() -> None:
    flat = ColumnsContract(tuple(each for each in CONTRACT.columns if each.type.kind != "datetime"))
    rows = [row(place)[:-1] for place in range(50)]
    names = [str(each.name) for each in flat.columns]
    body = msgspec.json.encode({"dataframe_split": {"columns": names, "data": rows}})
    found = rows_payload(body, flat, 1000)
    assert found
    assert decode(found.data) == data(rows, flat)


def test_gaps_among_booleans_stay_gaps_beside_a_table_without_any() -> None:
    full, gaps = [[True]] * PACKED_ROWS, [[None], [False], [True]]
    frame = to_input([data(full, MAYBE), data(gaps, MAYBE)], MAYBE)
    assert frame["maybe"].tolist() == [True] * PACKED_ROWS + [None, False, True]


def test_a_column_with_a_number_that_only_overflows_is_refused_as_in_single_rows() -> None:
    rows = [row(0)] * PACKED_ROWS
    rows[3] = [*rows[3][:3], 1e39, *rows[3][4:]]
    with pytest.raises(Exception, match="row 3, column 'float': got 1e\\+39"):
        data(rows, CONTRACT)
