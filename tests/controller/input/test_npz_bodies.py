"""NumPy archives are named tensors or columns, bounded before they unpack, and never unpickled."""

from __future__ import annotations

import io
import zipfile
from contextlib import nullcontext
from typing import Any

import numpy as np
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
from app.server_errors import (
    BodyNotArrayError,
    InputEmptyError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    TooLargeError,
)
from controller.input.bodies import NPZ
from controller.input.job_samples import NeedsReader, read_samples
from controller.pool_snapshot import build_snapshot
from controller.routing import routes
from controller.selector import Selector
from tests.pool_samples import record
from workers.job_inputs import decode

PAIR = TensorContract("float32", (2,))
NAMED = TensorsContract((TensorField("ids", "int64", (-1, -1)), TensorField("t", "str", (-1,))))
COLUMNS = ColumnsContract((Column("n", ColumnType("long")), Column("b", ColumnType("boolean"), False)))
MAX_BYTES = 2**16


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def samples(body: bytes, contract: Contract) -> Any:
    worker = record(input=contract)
    snapshot = build_snapshot([worker], {worker.queue: 1}, {})
    return read_samples(NPZ, body, routes(snapshot, Selector()), 1000, max_decoded_bytes=MAX_BYTES)


def test_an_archive_is_named_tensors_one_tensor_columns_or_anything() -> None:
    for pairs in (np.array([[1, 2], [3, 4]], np.float32), np.array([[1, 2], [3, 4]], np.int64)):
        assert samples(archive(x=pairs), PAIR).data == np.array([1, 2, 3, 4], np.float32).tobytes()
    assert samples(archive(x=np.array([1.0, 2.0])), PAIR).n_samples == 1
    [ids, text] = decode(samples(archive(t=np.array(["a", "b"]), ids=[[1], [2]], more=[1]), NAMED).data)
    assert (np.frombuffer(ids[2], "<i8").tolist(), text[2]) == ([1, 2], ["a", "b"])
    assert decode(samples(archive(n=[1, 2], b=[True, False], z=[0.5]), COLUMNS).data) == [
        [1, 2],
        [True, False],
    ]
    assert decode(samples(archive(a=[[1]]), AnyContract()).data) == ["inputs", {"a": [[1]]}]
    with pytest.raises(NeedsReader):
        read_samples(NPZ, b"", (), 1)


@pytest.mark.parametrize(
    ("body", "contract", "error", "said"),
    [
        (archive(n=[1.5]), COLUMNS, InputTypeError, "row 0, column 'n': got 1.5"),
        (archive(n=[1, 2], b=[True]), COLUMNS, InputShapeError, "n: (2,), b: (1,)"),
        (archive(z=[1]), COLUMNS, InputShapeError, "no array has the name of a column"),
        (archive(ids=[[1]]), NAMED, InputShapeError, "the tensor 't' is missing"),
        (archive(a=[1.0, 2.0], b=[1.0, 2.0]), PAIR, InputShapeError, "2 arrays"),
        (archive(a=[1.0, 2.0, 3.0]), PAIR, InputShapeError, "(3,)"),
        (archive(a=np.array([1 + 2j])), PAIR, InputTypeError, "complex128"),
        (archive(a=np.array(["2026"], "datetime64[ns]")), PAIR, InputTypeError, "datetime64"),
        (archive(a=np.array([object()], object)), PAIR, BodyNotArrayError, "not a complete NumPy file"),
        (archive(a=np.zeros(2**17)), PAIR, TooLargeError, "too many bytes"),
        (archive(), PAIR, InputEmptyError, "no array"),
        (archive(a=[1.0, 2.0])[:-30], PAIR, BodyNotArrayError, "numpy.savez"),
        (b"PK", PAIR, BodyNotArrayError, "numpy.savez"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_an_archive_that_does_not_fit_is_refused(
    body: bytes, contract: Contract, error: type[ModelyardError], said: str
) -> None:
    with pytest.raises(error) as refused:
        samples(body, contract)
    assert said in str(refused.value)


def test_an_archive_with_a_file_twice_or_in_another_compression_is_refused() -> None:
    saved = io.BytesIO()
    np.save(saved, np.array([1.0, 2.0]))
    for method, names in ((zipfile.ZIP_LZMA, ["a.npy"]), (zipfile.ZIP_STORED, ["a.npy", "a.npy"])):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as made:
            for name in names:
                with (
                    pytest.warns(UserWarning, match="Duplicate name")
                    if name in made.namelist()
                    else nullcontext()
                ):
                    made.writestr(name, saved.getvalue())
        with pytest.raises(BodyNotArrayError, match="occurs twice"):
            samples(file.getvalue(), PAIR)
