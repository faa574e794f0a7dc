"""Arrow IPC and Parquet bodies are read as strictly as JSON, within bounds, and away from the controller's process."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.contract import (
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    TensorContract,
    TensorField,
    TensorsContract,
)
from app.contract.documents import read
from app.contract.payloads import Payload, to_payload
from app.server_errors import (
    BodyNotArrayError,
    InputEmptyError,
    InputNotFiniteError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    TooLargeError,
)
from controller.input.arrow_bodies import read_table
from controller.input.bodies import ARROW_FILE, ARROW_STREAM, PARQUET
from controller.input.large_bodies import LargeBodies
from controller.pool_snapshot import build_snapshot
from controller.routing import routes
from controller.selector import Selector
from tests.controller.conftest import HandWorker, Serve
from tests.pool_samples import record
from workers.job_inputs import decode

KINDS = [ARROW_STREAM, ARROW_FILE, PARQUET]
MAX_BYTES = 2**22


def written(kind: bytes, table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == PARQUET:
        pq.write_table(table, file, **options)
        return file.getvalue()
    opened = pa.ipc.new_stream if kind == ARROW_STREAM else pa.ipc.new_file
    with opened(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def payload(
    kind: bytes, table: pa.Table | dict[str, Any], contract: Contract, max_rows: int = 1000
) -> Payload:
    whole = table if isinstance(table, pa.Table) else pa.table(table)
    given = read_table(kind, written(kind, whole), max_rows, MAX_BYTES)
    return to_payload(given.document(contract), contract, max_rows, "strict")


def columns(*named: Column) -> ColumnsContract:
    return ColumnsContract(named)


def column(kind: str, name: str | None = "c", required: bool = True, **of: Any) -> Column:
    return Column(name, ColumnType(kind, **of), required)


MIXED = columns(
    column("long", "n"), column("double", "x"), column("string", "t"), column("boolean", "b", False),
    column("datetime", "at"), column("binary", "raw"), column("array", "xs", items=ColumnType("long")),
    column("object", "o", properties=(column("string", "name"), column("long", "age", False))),
    column("map", "m", items=ColumnType("double")),
)  # fmt: skip
MIXED_JSON = b"""{"dataframe_records": [
 {"n": 1, "x": 0.5, "t": "a", "b": true, "at": "2026-01-31T12:00:00.123456789", "raw": "aGk=", "xs": [1, 2],
  "o": {"name": "p", "age": 3}, "m": {"k": 0.5}},
 {"n": 2, "x": null, "t": null, "b": null, "at": null, "raw": "aGk=", "xs": [], "o": {"name": "q"}, "m": {}}]}"""
MIXED_TABLE = pa.table(
    {
        "more": [1, 2],
        "m": pa.array([[("k", 0.5)], []], pa.map_(pa.string(), pa.float64())),
        "o": [{"name": "p", "age": 3}, {"name": "q", "age": None}],
        "xs": pa.array([[1, 2], []], pa.list_(pa.int32())),
        "raw": [b"hi", b"hi"],
        "at": pa.array(np.array(["2026-01-31T12:00:00.123456789", "NaT"], "datetime64[ns]")),
        "b": [True, None],
        "t": pa.array(["a", None]).dictionary_encode(),
        "x": pa.array([0.5, None], pa.float32()),
        "n": pa.array([1, 2], pa.int8()),
    }
)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_what_the_same_rows_are_as_json(kind: bytes) -> None:
    as_json = to_payload(read(b"application/json", MIXED_JSON, "strict"), MIXED, 1000, "strict")
    ours, theirs = decode(payload(kind, MIXED_TABLE, MIXED).data), decode(as_json.data)
    theirs[7][1]["age"] = None  # a struct has all of its fields
    assert ours == theirs
    cut = MIXED_TABLE.slice(1)
    assert decode(payload(kind, cut, MIXED).data) == [values[1:] for values in theirs]


REFUSED: list[tuple[str, Any, type[ModelyardError], str]] = [
    ("long", pa.array([1, None]), InputTypeError, "row 1, column 'c': got None; expected a whole number"),
    ("long", [1.0, 1.5], InputTypeError, "row 1, column 'c': got 1.5"),
    ("long", pa.array([1, 2**63], pa.uint64()), InputTypeError, "row 1, column 'c': got 9223372036854775808"),
    ("integer", [1, 3_000_000_000], InputTypeError, "row 1, column 'c': got 3000000000"),
    ("float", [1.0, 1e39], InputTypeError, "row 1, column 'c': got 1e+39"),
    ("double", [1.0, float("inf")], InputTypeError, "row 1, column 'c': got inf"),
    ("double", ["1"], InputTypeError, "row 0, column 'c': got '1'"),
    ("boolean", [1, 0], InputTypeError, "row 0, column 'c': got 1; expected true or false"),
    ("string", [1], InputTypeError, "row 0, column 'c': got 1; expected text"),
    ("string", [dt.datetime(2026, 1, 31)], InputTypeError, "row 0, column 'c'"),
    ("datetime", pa.array([None, dt.datetime(2026, 1, 31)], pa.timestamp("us", "UTC")), InputTypeError,
     "row 1, column 'c': got '2026-01-31T00:00:00.000000+00:00'; expected a time without offset"),
    ("datetime", pa.array([dt.datetime(1500, 1, 1)], pa.timestamp("us")), InputTypeError, "the years 1678"),
    ("datetime", [1], InputTypeError, "row 0, column 'c': got 1"),
    ("binary", [1], InputTypeError, "row 0, column 'c'"),
    ("double", [dt.time(1)], InputTypeError, "the Arrow type time64"),
    ("any", pa.array([1], pa.duration("s")), InputTypeError, "the Arrow type duration"),
    ("double", pa.array([], pa.float64()), InputEmptyError, "at least one"),
]  # fmt: skip


@pytest.mark.parametrize("value_type", [pa.string_view(), pa.large_string()])
def test_text_in_a_dictionary_is_what_the_same_text_is_without_one(value_type: pa.DataType) -> None:
    words = pa.array(["a", "ä"], value_type)
    table = pa.table({"c": pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.uint32()), words)})
    contract = columns(column("string"))
    for kind in (ARROW_STREAM, ARROW_FILE):
        assert payload(kind, table, contract) == payload(kind, {"c": ["ä", "a", "ä"]}, contract)


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_has_a_key_twice_is_refused_and_not_shortened(kind: bytes) -> None:
    pairs = pa.array([[], [("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
    contract = columns(Column("c", ColumnType("map", ColumnType("long"))))
    with pytest.raises(InputTypeError, match="row 1, column 'c': a key occurs twice"):
        payload(kind, pa.table({"c": pairs}), contract)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_is_refused_by_row_column_and_value(kind: bytes) -> None:
    for of_type, values, error, said in REFUSED:
        with pytest.raises(error) as refused:
            payload(kind, {"c": values}, columns(column(of_type)))
        assert said in str(refused.value), (of_type, values)
    with pytest.raises(InputShapeError, match="the column 'c' is missing"):
        payload(kind, {"d": [1]}, columns(column("long")))
    with pytest.raises(TooLargeError, match="11 rows in one request; at most 10"):
        payload(kind, {"c": list(range(11))}, columns(column("long")), max_rows=10)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["c", "c"])
    with pytest.raises((InputShapeError, BodyNotArrayError)):
        payload(kind, twice, columns(column("long")))


def test_whole_numbers_times_and_decimals_of_any_width_are_taken_exactly() -> None:
    taken: list[tuple[str, Any, list[Any]]] = [
        ("long", pa.array([1.0, float(2**40)]), [1, 2**40]),
        ("long", pa.array([1, 2**53 + 1], pa.uint64()), [1, 2**53 + 1]),
        *[("long", [-edge, 0, edge - 1], [-edge, 0, edge - 1]) for edge in (2**7, 2**15, 2**31, 2**63)],
        *[("long", [-edge - 1, edge], [-edge - 1, edge]) for edge in (2**7, 2**15, 2**31)],
        ("integer", pa.array([-5, 2**31 - 1], pa.int32()), [-5, 2**31 - 1]),
        ("boolean", [True, False], [True, False]),
        ("double", [1e300, None, float("nan")], [1e300, None, None]),
        ("double", pa.array([1, 2]), [1.0, 2.0]),
        ("double", pa.array(["1.25", None]).cast(pa.decimal128(9, 2)), [1.25, None]),
        ("float", pa.array([0.1], pa.float32()), [float(np.float32(0.1))]),
        ("any", pa.array([None], pa.null()), [None]),
        ("any", pa.array([None, dt.date(9999, 12, 31)]), [None, "9999-12-31"]),
        ("any", pa.array([{"t": [dt.datetime(2026, 1, 31)]}]), [{"t": ["2026-01-31T00:00:00.000000"]}]),
        ("string", pa.array(["ä"], pa.large_string()), ["ä"]),
        ("binary", pa.array(["aGk="]), [b"hi"]),
        ("datetime", pa.array([dt.date(1970, 1, 2)]), [86_400_000_000_000]),
    ]
    for of_type, values, expected in taken:
        assert decode(payload(ARROW_STREAM, {"c": values}, columns(column(of_type))).data) == [expected]
    unnamed = ColumnsContract((column("long", None), column("double", None)))
    framed = pa.table({"a": [1], "b": [0.5], "z": [1], "__index_level_0__": [7]})
    assert decode(payload(PARQUET, framed, unnamed).data) == [[1], [0.5]]
    key, value = decode(payload(PARQUET, {"a": [1, 2], "t": ["x", None]}, AnyContract()).data)
    assert (key, value) == ("dataframe_split", {"columns": ["a", "t"], "data": [[1, "x"], [2, None]]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_many_rows_is_what_the_same_rows_are_as_json(kind: bytes) -> None:
    rows = range(40)
    values: dict[str, list[Any]] = {
        "boolean": [row % 3 == 0 for row in rows],
        "integer": [row - 20 for row in rows],
        "long": [2**53 + row for row in rows],
        "float": [None if row % 5 == 0 else row / 4 for row in rows],
        "double": [None if row % 7 == 0 else row / 3 for row in rows],
        "string": [None if row % 9 == 0 else f"text {row}" for row in rows],
    }
    contract = ColumnsContract(tuple(Column(each, ColumnType(each)) for each in values))
    types = [pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()]
    table = pa.table(
        [pa.array(each, of) for each, of in zip(values.values(), types, strict=True)], list(values)
    )
    document = json.dumps({"inputs": values}).encode()
    as_json = to_payload(read(b"application/json", document, "strict"), contract, 1000, "strict")
    assert payload(kind, table, contract).data == as_json.data
    assert [type(each) for each in decode(as_json.data)] == [*[bytes] * 5, list]
    with pytest.raises(InputTypeError, match=r"row 39, column 'long': got None"):
        payload(kind, pa.table({**values, "long": [*values["long"][:-1], None]}), contract)


def test_columns_of_numbers_or_one_column_of_lists_are_a_tensor() -> None:
    pixels = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2)
    lists = pa.array(pixels.reshape(2, 8).tolist(), pa.list_(pa.float32()))
    sized = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 8)
    shaped = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    contract = TensorContract("float32", (2, 2, 2))
    mixed = payload(ARROW_STREAM, {"a": [0.5, 1.5], "b": [1, 2]}, TensorContract("float32", (2,)))
    assert mixed.data == np.array([[0.5, 1], [1.5, 2]], np.float32).tobytes()
    for table in ({"x": lists}, {"x": sized}, {"x": shaped}, {"x": pixels.tolist()},
                  {str(place): pixels.reshape(2, 8)[:, place] for place in range(8)}):  # fmt: skip
        taken = payload(ARROW_STREAM, table, contract)
        assert (taken.data, taken.n_samples) == (pixels.tobytes(), 2)
    named = TensorsContract((TensorField("ids", "int64", (-1, -1)), TensorField("w", "float32", (-1,))))
    taken = payload(PARQUET, {"w": [0.5, 1.5], "ids": [[1, 2], [3, 4]]}, named)
    [(_, shape, ids), _] = decode(taken.data)
    assert (shape, np.frombuffer(ids, "<i8").tolist()) == ([2, 2], [1, 2, 3, 4])
    text = TensorsContract((TensorField(None, "str", (-1,)),))
    assert decode(payload(PARQUET, {"t": ["a", "b"]}, text).data)[0][2] == ["a", "b"]
    missing = TensorsContract((TensorField(None, "float64", (-1, 2)),), allows_missing=True)
    [(_, _, values)] = decode(payload(PARQUET, {"a": [1.0, None], "b": [2.0, 3.0]}, missing).data)
    assert np.array_equal(np.frombuffer(values).tolist(), [1, 2, np.nan, 3], equal_nan=True)


SIX = pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.float32()), 6)
SHAPED = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [3, 2]), SIX)
PERMUTED = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), [3, 2], permutation=[1, 0]), SIX
)


def test_a_table_that_spells_no_tensor_is_refused_by_row_and_column() -> None:
    pair, whole = TensorContract("float32", (2,)), TensorContract("uint8", (2,))
    refused: list[tuple[Any, Contract, type[ModelyardError], str]] = [
        ({"x": [[1.0, 2.0], [3.0]]}, pair, InputShapeError, "row 1, column 'x': a list of 1 values"),
        ({"x": [[1.0, 2.0], None]}, pair, InputShapeError, "row 1, column 'x': got null"),
        ({"a": [1.0], "b": pa.array([None], pa.float64())}, pair, InputTypeError, "got None"),
        ({"a": [1.0], "b": ["1"]}, pair, InputTypeError, "differ in type (a: double, b: string)"),
        ({"a": [1.0], "b": [1.0], "c": [1.0]}, pair, InputShapeError, "(1, 3)"),
        ({"a": [1.0], "b": [1e39]}, pair, InputNotFiniteError, "finite float32"),
        ({"a": [1], "b": [300]}, whole, InputTypeError, "row 0, value [0][1]: got 300"),
        ({"a": [1.5], "b": [2.0]}, whole, InputTypeError, "got 1.5"),
        ({"a": ["1"], "b": ["2"]}, pair, InputTypeError, "got '1'"),
        ({"a": [b"1"]}, pair, InputTypeError, "the Arrow type binary"),
        (pa.table({}), pair, InputShapeError, "no column"),
        ({"x": SHAPED}, TensorContract("float32", (2, 3)), InputShapeError, "(1, 3, 2)"),
        ({"x": PERMUTED}, TensorContract("float32", (3, 2)), InputTypeError, "permuted dimensions"),
    ]
    for table, contract, error, said in refused:
        with pytest.raises(error) as found:
            payload(ARROW_STREAM, table, contract)
        assert said in str(found.value)


def test_what_follows_the_end_of_a_stream_is_refused_and_not_left_out() -> None:
    stream = written(ARROW_STREAM, pa.table({"c": [1]}))
    with pytest.raises(BodyNotArrayError, match=f"{len(stream)} bytes follow the end"):
        read_table(ARROW_STREAM, stream + stream, 1000, MAX_BYTES)


@pytest.fixture(scope="module")
def reader() -> Any:
    """Reads a body in a reader process for a version with one long column; gives the samples or the error."""
    bodies = LargeBodies(n_processes=1)
    worker = record(input=columns(column("long")))
    possible = routes(build_snapshot([worker], {worker.queue: 1}, {}), Selector())

    def ask(kind: bytes, body: bytes) -> Any:
        async def read_it() -> Any:
            try:
                return await bodies.read([body], kind, possible, 1000)
            except ModelyardError as error:
                return error

        return asyncio.run(read_it())

    yield ask
    bodies.close()


@pytest.mark.process
def test_what_unpacks_to_more_than_its_limit_is_refused_before_it_takes_the_memory(reader: Any) -> None:
    def much(n_bytes: int) -> pa.Table:
        return pa.table({"c": [1], "t": ["0" * n_bytes]})

    assert reader(ARROW_STREAM, written(ARROW_STREAM, much(10), compression="zstd")).n_samples == 1
    indices = pa.array(np.zeros(1000, np.int32))
    repeated = pa.table({"c": pa.DictionaryArray.from_arrays(indices, pa.array(["0" * 2**20]))})
    bombs = [
        (PARQUET, written(PARQUET, much(2**25 + 1), compression="zstd")),
        (ARROW_STREAM, written(ARROW_STREAM, much(2**25 + 1), compression="zstd")),
        (PARQUET, written(PARQUET, repeated, compression="zstd")),
        (ARROW_STREAM, written(ARROW_STREAM, repeated, compression="zstd")),
    ]
    for kind, body in bombs:
        assert len(body) < 2**18
        refused = reader(kind, body)
        assert isinstance(refused, TooLargeError), refused
    assert reader(PARQUET, written(PARQUET, much(10))).n_samples == 1


@pytest.mark.process
def test_damaged_bodies_are_refused_and_the_reader_stays_fit(reader: Any) -> None:
    generator = np.random.default_rng(0)
    whole = {kind: written(kind, pa.table({"c": list(range(50)), "t": ["x"] * 50})) for kind in KINDS}
    for kind, body in whole.items():
        for other in (b"", b"PAR1", b"ARROW1", b"\xff" * 64, body[: len(body) // 2], body[:-1]):
            found = reader(kind, other)
            assert isinstance(found, BodyNotArrayError) or other is body[:-1], (kind, other, found)
        for _ in range(60):
            damaged = bytearray(body)
            for place in generator.integers(0, len(body), 3):
                damaged[place] = generator.integers(256)
            found = reader(kind, bytes(damaged))
            assert not isinstance(found, ModelyardError) or found.code, found
        assert reader(kind, body).n_samples == 50


async def test_tables_reach_the_worker_and_bad_ones_no_queue(
    serve: Serve, hand_worker: Callable[..., HandWorker], client: Any
) -> None:
    worker = hand_worker(input=columns(column("long")))
    served = await serve()
    good, bad = pa.table({"c": [1, 2]}), pa.table({"c": [1, None]})
    for kind in [*KINDS, b"application/x-parquet"]:
        of = PARQUET if kind not in KINDS else kind
        refused = await served.post(written(of, bad), content_type=kind.decode())
        assert (refused.status_code, refused.json()["code"]) == (422, "input_wrong_type")
        broken = await served.post(written(of, good)[:-9], content_type=kind.decode())
        assert broken.status_code in (400, 202)
    for kind in KINDS:
        accepted = await served.post(written(kind, good), content_type=kind.decode())
        assert accepted.status_code == 202
        assert decode((await worker.claimed()).data) == [[1, 2]]
