"""Bodies of every format for versions of several contracts, and ways to spoil them, for `test_fuzz.py`."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from app.contract import (
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    Param,
    TensorContract,
    TensorField,
    TensorsContract,
)

STREAM = "application/vnd.apache.arrow.stream"
FILE = "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
FORM = "multipart/form-data; boundary=frontier"
JSON = "application/json"


@dataclass(frozen=True)
class Sent:
    """A request to `path`; `json_length` is the header of binary tensors."""

    path: str
    content_type: str
    body: bytes
    json_length: str = ""

    def headers(self) -> dict[str, str]:
        """Headers; no request waits for an outcome, because no worker gives one."""
        own = {"content-type": self.content_type, "prefer": "respond-async"}
        return own | ({"inference-header-content-length": self.json_length} if self.json_length else {})


def _column(name: str, kind: str, required: bool = True, **of: Any) -> Column:
    return Column(name, ColumnType(kind, **of), required)


CONTRACTS: dict[str, Contract] = {
    "Pair": TensorContract("float32", (2,)),
    "Picture": TensorContract("uint8", (5, 6, 3)),
    "Named": TensorsContract(
        (TensorField("ids", "int64", (-1, -1)), TensorField("w", "float32", (-1,))), (Param("k", "long"),)
    ),
    "Text": TensorsContract((TensorField(None, "str", (-1,)),)),
    "Table": ColumnsContract(
        (
            _column("n", "long"), _column("x", "double"), _column("t", "string"), _column("b", "boolean", False),
            _column("at", "datetime", False), _column("i", "integer", False),
            _column("xs", "array", False, items=ColumnType("float")),
            _column("o", "object", False, properties=(_column("name", "string"), _column("age", "long", False))),
            _column("m", "map", False, items=ColumnType("double")),
        ),
        (Param("k", "long"), Param("l", "double", is_list=True)),
    ),
    "Flat": ColumnsContract((_column("n", "long"), _column("x", "double"), _column("t", "string", False))),
    "Bytes": ColumnsContract((_column("raw", "binary"),)),
    "Anything": AnyContract(),
}  # fmt: skip
ROW = {
    "n": 1, "x": 0.5, "t": "a", "b": True, "at": "2026-01-31T12:00:00", "i": 3, "xs": [1.5, 2.5],
    "o": {"name": "p", "age": 3}, "m": {"k": 0.5},
}  # fmt: skip
ROWS = [ROW, {**ROW, "n": 2, "x": None, "t": None, "b": None}]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)


def image(rng: random.Random) -> bytes:
    """An image that may have another size, colours or format than a version takes."""
    height, width = rng.choice([(5, 6), (5, 6), (6, 5), (1, 1), (500, 300)])
    made = Image.fromarray(np.resize(PIXELS, (height, width, 3)))
    made = made.convert(rng.choice(["RGB", "RGB", "RGB", "L", "1", "P", "RGBA", "LA", "I;16"]))
    file = io.BytesIO()
    made.save(file, "JPEG" if made.mode in ("RGB", "L") and rng.random() < 0.5 else "PNG")
    return file.getvalue()


def _form(files: list[bytes], fields: dict[str, str]) -> bytes:
    head = 'Content-Disposition: form-data; name="{}"'
    parts = [f"{head.format(name)}\r\n\r\n{text}\r\n".encode() for name, text in fields.items()]
    start = f'{head.format("f")}; filename="f"\r\nContent-Type: image/png\r\n\r\n'.encode()
    parts += [start + file + b"\r\n" for file in files]
    return b"".join(b"--frontier\r\n" + part for part in parts) + b"--frontier--\r\n"


ARRAYS: list[Any] = [
    pa.array([1, 2]), pa.array([1, None]), pa.array([1.5, float("nan")]), pa.array([0.5, 2.0], pa.float32()),
    pa.array([1, 2**63], pa.uint64()), pa.array(["a", None]), pa.array(["a", "b"]).dictionary_encode(),
    pa.array([True, None]), pa.array([b"\xff", b""]), pa.array([[1.5], []]), pa.array([[1, 2], [3, 4]]),
    pa.array([[[1], [2]], [[3], [4]]]), pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    pa.array([{"name": "p", "age": 3}, None]), pa.array([[("k", 0.5)], None], pa.map_(pa.string(), pa.float64())),
    pa.array([1, 2], pa.timestamp("ns")), pa.array([-(2**62), None], pa.timestamp("s", "UTC")),
    pa.array([1, 2], pa.date32()), pa.array([1, 2], pa.time64("us")), pa.array([1, 2], pa.duration("s")),
    pa.array([None, None]), pa.array(["1.5", "2"]).cast(pa.decimal128(9, 2)), pa.array([1.5, 2.0], pa.float16()),
    pa.array([{"at": 1}, {"at": 2}], pa.struct([("at", pa.timestamp("us"))])),
    pa.array(["x", "y"], pa.string_view()),
    pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 5, 6, 3), np.uint8)),
]  # fmt: skip


def table(rng: random.Random, names: list[str]) -> tuple[str, bytes]:
    """A table whose columns may have any type, in a format of Arrow's."""
    chosen = [name for name in names if rng.random() < 0.9] or names
    columns = {name: rng.choice(ARRAYS) for name in chosen}
    if rng.random() < 0.5:
        columns = {name: RIGHT.get(name, array) for name, array in columns.items()}
    made, file = pa.table(columns), io.BytesIO()
    kind = rng.choice([STREAM, FILE, PARQUET])
    if kind == PARQUET:
        try:
            pq.write_table(made, file, compression=rng.choice(["none", "snappy", "gzip", "zstd"]))
            return kind, file.getvalue()
        except pa.ArrowException:  # Parquet has no such type
            kind, file = STREAM, io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=rng.choice([None, "lz4", "zstd"]))
    with (pa.ipc.new_stream if kind == STREAM else pa.ipc.new_file)(file, made.schema, options=options) as to:
        to.write_table(made)
    return kind, file.getvalue()


RIGHT = {
    "n": pa.array([1, 2]), "x": pa.array([0.5, None]), "t": pa.array(["a", None]), "raw": pa.array([b"x", b"y"]),
    "ids": pa.array([[1, 2], [3, 4]]), "w": pa.array([0.5, 1.5]), "b": pa.array([True, None]),
}  # fmt: skip


def _split(rows: list[dict[str, Any]]) -> Any:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


def _trees(rng: random.Random) -> list[tuple[str, Any]]:
    """Models and JSON documents that they take."""
    encoded = base64.b64encode(image(rng)).decode()
    flat = [{"n": 1, "x": 0.5, "t": "a"}, {"n": 2, "x": 1.5, "t": "b"}]
    return [
        ("Pair", {"data": [[1, 2], [3, 4]]}),
        ("Pair", {"dataframe_split": _split([{"a": 1, "b": 2}])}),
        ("Picture", {"instances": [{"b64": encoded}]}),
        ("Picture", {"data": [f"data:image/png;base64,{encoded}"]}),
        ("Picture", {"data": PIXELS[None].tolist()}),
        ("Named", {"inputs": {"ids": [[1, 2], [3, 4]], "w": [0.5, 1.5]}, "params": {"k": 3}}),
        ("Named", {"instances": [{"ids": [1, 2], "w": 0.5}]}),
        ("Text", {"inputs": ["a", "b"]}),
        ("Table", {"dataframe_split": _split(ROWS), "params": {"k": 1, "l": [1, 2.5]}}),
        ("Table", {"dataframe_records": ROWS}),
        ("Flat", {"inputs": {"n": [1, 2], "x": [0.5, 1], "t": ["a", "b"]}}),
        ("Flat", {"dataframe_records": flat}),
        ("Bytes", {"inputs": {"raw": ["aGk="]}}),
        ("Anything", {"inputs": [[1, "a", None], {"a": [1]}]}),
    ]


def _tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


V2: list[tuple[str, Any]] = [
    ("Pair", {"inputs": [_tensor("input-0", "FP32", [1, 2], [1, 2])]}),
    ("Named", {"id": "a", "parameters": {"k": 1},
     "inputs": [_tensor("ids", "INT64", [1, 2], [[1, 2]]), _tensor("w", "FP32", [1], [0.5])]}),
    ("Text", {"inputs": [_tensor("input-0", "BYTES", [2], ["a", "b"])], "outputs": [{"name": "output-0"}]}),
    ("Flat", {"inputs": [_tensor("n", "INT64", [2, 1], [1, 2]), _tensor("x", "FP64", [2, 1], [0.5, 1.5])]}),
    ("Anything", {"inputs": [_tensor("a", "FP64", [1], [1.5])]}),
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, -1, 0, 1.5, 1e308, -1e39, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, float("nan"),
    float("inf"), "", "x", "1", "\ud800", "\x00", "9" * 400, [], [[]], {}, [None], {"b64": "!"}, {"": 1}, "aGk",
    "data:image/png;base64,AAAA", "2026-02-31", "1500-01-01", 1 << 1000, "a" * 70_000, [0] * 3000,
]  # fmt: skip
KEYS = [
    "data",
    "inputs",
    "instances",
    "dataframe_split",
    "dataframe_records",
    "params",
    "columns",
    "index",
    "",
    "x",
]


def _deep(depth: int, of_lists: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if of_lists else {"a": value}
    return value


def spoilt(rng: random.Random, node: Any) -> Any:
    """The tree with one node replaced, removed, repeated or renamed."""
    if rng.random() < 0.25 or not node or type(node) not in (dict, list):
        return _deep(rng.choice([3, 40, 400]), rng.random() < 0.5) if rng.random() < 0.1 else rng.choice(ODD)
    if type(node) is list:
        place, copied = rng.randrange(len(node)), list(node)
        deed = rng.random()
        if deed < 0.1:
            del copied[place]
        elif deed < 0.2:
            copied.append(copied[place])
        else:
            copied[place] = spoilt(rng, copied[place])
        return copied
    key, changed = rng.choice(list(node)), dict(node)
    if rng.random() < 0.15:
        changed[rng.choice(KEYS)] = changed.pop(key)
    else:
        changed[key] = spoilt(rng, changed[key])
    return changed


def spoilt_bytes(rng: random.Random, body: bytes) -> bytes:
    """The body with some of its bytes flipped, cut off, repeated, removed or inserted."""
    damaged = bytearray(body)
    deed = rng.random()
    start = rng.randrange(len(body) + 1)
    end = min(len(body), start + rng.choice([1, 4, 16, 200]))
    if deed < 0.6:
        for _ in range(rng.choice([1, 1, 2, 5])):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.choice(
                    [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
                )
    elif deed < 0.75:
        del damaged[start:]
    elif deed < 0.85:
        del damaged[start:end]
    elif deed < 0.93:
        damaged[start:start] = damaged[start:end] * rng.choice([1, 50])
    else:
        damaged[start:end] = struct.pack("<q", rng.choice([-1, 2**31, 2**62, -(2**63)]))
    return bytes(damaged)


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _json(rng: random.Random) -> Sent:
    model, tree = rng.choice(_trees(rng))
    path = rng.choice(
        [f"/models/{model}/predict", f"/models/{model}/invocations", "/predict", "/invocations"]
    )
    return Sent(path, JSON, _dumped(spoilt(rng, tree) if rng.random() < 0.9 else tree))


def _msgpack(rng: random.Random) -> Sent:
    model, tree = rng.choice(_trees(rng))
    try:
        body = msgspec.msgpack.encode(spoilt(rng, tree))
    except (OverflowError, UnicodeEncodeError):
        body = msgspec.msgpack.encode(tree)
    return Sent(f"/models/{model}/predict", "application/msgpack", body)


def _v2(rng: random.Random) -> Sent:
    model, tree = rng.choice(V2)
    path = f"/v2/models/{model}/infer"
    if rng.random() < 0.2:
        return Sent(path, JSON, _dumped(tree))
    if rng.random() < 0.5:
        return Sent(path, JSON, _dumped(spoilt(rng, tree)))
    parts, inputs = [], []
    for each in tree["inputs"]:
        data = struct.pack("<2d", 1.5, 2.5)[: rng.choice([4, 8, 16])]
        inputs.append({**each, "parameters": {"binary_data_size": len(data)}})
        del inputs[-1]["data"]
        parts.append(data)
    head = {**tree, "inputs": inputs}
    text = _dumped(spoilt(rng, head) if rng.random() < 0.5 else head)
    length = str(len(text) + rng.choice([0, 0, 0, 1, -1, 10**6]))
    return Sent(path, "application/octet-stream", text + b"".join(parts), length)


CELLS = ["1", "2.5", "", "NaN", "a", '"', '"a,b"', "true", "9" * 30, "1e400", "\x00", "é", "\n", ",", "\r"]


def _csv(rng: random.Random) -> Sent:
    rows = [
        ["n", "x", "t"],
        *([rng.choice(CELLS) for _ in range(rng.choice([3, 3, 2, 4]))] for _ in range(3)),
    ]
    if rng.random() < 0.4:
        rows[1:] = [["1", "2.5", "a"], ["2", "", "b"]]
    body = "\n".join(",".join(row) for row in rows).encode()
    path = rng.choice(["/models/Flat/predict", "/models/Flat/invocations", "/models/Pair/predict"])
    return Sent(path, "text/csv", body)


def _table(rng: random.Random) -> Sent:
    model, names = rng.choice([
        ("Table", list(ROW)), ("Flat", ["n", "x", "t"]), ("Bytes", ["raw"]), ("Named", ["ids", "w"]),
        ("Pair", ["a", "b"]), ("Picture", ["a"]), ("Text", ["t"]), ("Anything", ["n", "t", "xs"]),
    ])  # fmt: skip
    kind, body = table(rng, names)
    route = "invocations" if kind == PARQUET and rng.random() < 0.3 else "predict"
    return Sent(f"/models/{model}/{route}", kind, body)


def _image(rng: random.Random) -> Sent:
    model = rng.choice(["Picture", "Picture", "Bytes", "Pair"])
    return Sent(f"/models/{model}/predict", rng.choice(["image/png", "image/jpeg"]), image(rng))


def _multipart(rng: random.Random) -> Sent:
    fields = {name: rng.choice(["1", "x", "[1]"]) for name in ("k", "l") if rng.random() < 0.3}
    body = _form([image(rng) for _ in range(rng.choice([0, 1, 2]))], fields)
    return Sent(f"/models/{rng.choice(['Picture', 'Bytes'])}/predict", FORM, body)


def _numpy(rng: random.Random) -> Sent:
    arrays: list[Any] = [
        np.array([[1, 2]], np.float32), np.array([[1, 2]]), PIXELS[None], np.array(["a", "b"]), np.array([True]),
        np.array([[np.nan, 1]]), np.array([2**63], np.uint64), np.zeros((0, 2)), np.array(1.5), np.zeros((1,) * 20),
    ]  # fmt: skip
    file = io.BytesIO()
    if rng.random() < 0.5:
        np.save(file, rng.choice(arrays))
        return Sent(
            f"/models/{rng.choice(['Pair', 'Picture', 'Text'])}/predict", "application/x-npy", file.getvalue()
        )
    model, names = rng.choice(
        [("Named", ["ids", "w"]), ("Flat", ["n", "x"]), ("Pair", ["a"]), ("Anything", ["a"])]
    )
    save = rng.choice([np.savez, np.savez_compressed])
    save(file, **{name: rng.choice(arrays) for name in names})
    return Sent(f"/models/{model}/predict", "application/x-npz", file.getvalue())


def _octets(rng: random.Random) -> Sent:
    body = rng.choice([b"", b"\x00" * 7, np.ones(2, "<f4").tobytes(), b"\x7f" * 90, rng.randbytes(3000)])
    model = rng.choice(["Pair", "Pair", "Picture", *CONTRACTS])
    return Sent(f"/models/{model}/predict", "application/octet-stream", body)


FORMATS: dict[str, Callable[[random.Random], Sent]] = {
    "json": _json, "msgpack": _msgpack, "v2": _v2, "csv": _csv, "table": _table, "image": _image,
    "multipart": _multipart, "numpy": _numpy, "octets": _octets,
}  # fmt: skip
TYPES = [
    JSON,
    "application/msgpack",
    "text/csv",
    STREAM,
    FILE,
    PARQUET,
    "image/png",
    FORM,
    "application/x-npz",
]
WEIGHTS = [5, 2, 3, 1, 5, 3, 2, 2, 1]


def request(rng: random.Random) -> tuple[str, Sent]:
    """A request of a format, spoilt in one way or another, and the format's name."""
    [name] = rng.choices(list(FORMATS), WEIGHTS)
    sent = FORMATS[name](rng)
    body, content_type = sent.body, sent.content_type
    if rng.random() < 0.4:
        body = spoilt_bytes(rng, body)
    if rng.random() < 0.05 and "/predict" in sent.path:
        content_type = rng.choice(TYPES)
    return name, Sent(sent.path, content_type, body, sent.json_length)
