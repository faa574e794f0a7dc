"""Encodes a job's input for its worker, for all contracts except a plain tensor; `workers.job_inputs` decodes it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import AnyContract, ColumnsContract, Contract, TensorContract, TensorsContract
from app.contract.documents import UNIFIED, Document, Rules, check_frame
from app.contract.packed_columns import pack
from app.contract.params import read_params
from app.contract.tables import read_columns
from app.contract.tensors import read_tensors
from app.contract.typed_rows import read_rows
from app.ledger.wire import ANY_CONTRACT_VERSION
from app.server_errors import InputShapeError, InputTypeError, TooLargeError

_encode = msgspec.msgpack.Encoder().encode


class JobForm(msgspec.Struct, frozen=True, cache_hash=True):
    """Properties that jobs must share to be in one batch, if their version does not take a plain tensor.

    Attributes:
        kind: Kind of the contract.
        params: Parameters in the form of `read_params`.
        layout: Shapes of the tensors' rows, or the set of present optional columns.
        merges: Whether the job may share a batch at all.
    """

    kind: str
    params: bytes = b""
    layout: tuple[Any, ...] = ()
    merges: bool = True

    def head_fields(self, sizes: list[int]) -> dict[str, Any]:
        """The fields of the batch head that tell this form.

        Args:
            sizes: Size of each job's data in bytes.
        """
        return {
            "kind": self.kind,
            "params": self.params,
            "sizes": tuple(sizes),
            "schema_version": ANY_CONTRACT_VERSION,
        }


class Payload(msgspec.Struct, frozen=True):
    """A job's input.

    Attributes:
        form: Its form; None if the contract is a plain tensor.
        data: Data in the format of `app.ledger.wire.BatchHead`.
        n_samples: Number of rows.
    """

    form: JobForm | None
    data: bytes
    n_samples: int


def to_payload(document: Document, contract: Contract, max_samples: int, rules: Rules) -> Payload:
    """Convert a document to a job's input under a contract.

    Raises:
        InputError: It does not fit the contract.
        TooLargeError: It has more than `max_samples` rows.
    """
    if isinstance(document.value, np.ndarray) and not isinstance(contract, TensorContract | TensorsContract):
        document = msgspec.structs.replace(document, value=document.value.tolist())
    check_frame(document, rules)
    try:
        params = read_params(document.params, contract.params, rules)
        payload = _payload(document, contract, params, rules)
    except OverflowError:
        raise InputTypeError("a whole number has more than 64 bits; expected one that has fewer") from None
    except UnicodeEncodeError:
        raise InputTypeError("text holds half of a surrogate pair; expected valid Unicode") from None
    return _limited(payload, max_samples)


def rows_payload(body: bytes, contract: ColumnsContract, max_samples: int) -> Payload | None:
    """Convert a JSON body with typed rows to a job's input in one pass; None if `to_payload` must convert it.

    Raises:
        TooLargeError: It has more than `max_samples` rows.
    """
    found = read_rows(body, contract)
    if found is None:
        return None
    columns, n_rows = found
    data = _encode(pack(columns, contract, n_rows))
    return _limited(Payload(_full_form(len(columns), contract.merges), data, n_rows), max_samples)


@lru_cache(maxsize=64)
def _full_form(n_columns: int, merges: bool) -> JobForm:
    """The form of jobs that have all columns; one object, so that comparing such jobs is cheap."""
    return JobForm("columns", layout=(True,) * n_columns, merges=merges)


def _limited(payload: Payload, max_samples: int) -> Payload:
    if payload.n_samples > max_samples:
        raise TooLargeError(f"{payload.n_samples} rows in one request; at most {max_samples} are accepted")
    return payload


def _payload(document: Document, contract: Contract, params: bytes, rules: Rules) -> Payload:
    if isinstance(contract, TensorContract):
        [array] = read_tensors(document, contract.as_tensors, rules)
        return Payload(None, _bytes(array), len(array))
    if isinstance(contract, TensorsContract):
        return _tensors(document, contract, params, rules)
    if isinstance(contract, ColumnsContract):
        columns, n_rows = read_columns(document, contract, rules)
        layout = tuple([values is not None for values in columns])
        form = JobForm("columns", params, layout, contract.merges and n_rows > 0)
        return Payload(form, _encode(pack(columns, contract, n_rows)), n_rows)
    return _anything(document, contract, params)


def _tensors(document: Document, contract: TensorsContract, params: bytes, rules: Rules) -> Payload:
    arrays = read_tensors(document, contract, rules)
    lengths = {array.shape[:1] for array in arrays}
    if contract.merges and len(lengths) > 1 and rules == "strict":
        shown = ", ".join(str(array.shape) for array in arrays)
        raise InputShapeError(f"the tensors differ in their first dimension ({shown}); expected the same")
    data = _encode([(_dtype(array), array.shape, _values(array)) for array in arrays])
    layout = tuple([array.shape[1:] for array in arrays])
    form = JobForm("tensors", params, layout, contract.merges and len(lengths) == 1)
    return Payload(form, data, len(arrays[0]))


def _anything(document: Document, contract: AnyContract, params: bytes) -> Payload:
    value = document.value
    if contract.is_own and document.key != UNIFIED and type(value) is not list:
        raise InputShapeError(f"got a value that is not a list; expected {contract.describe()}")
    if type(value) is bytes:
        raise InputTypeError("raw numbers are taken where a signature has their dtype and shape; send JSON")
    rows = value.get("data") if document.key == "dataframe_split" and isinstance(value, dict) else value
    n_rows = max(len(rows), 1) if isinstance(rows, list) else 1
    return Payload(JobForm("any", params, merges=False), _encode((document.key, value)), n_rows)


def _dtype(array: NDArray[Any]) -> str:
    return "str" if array.dtype.kind == "O" else array.dtype.name


def _values(array: NDArray[Any]) -> bytes | list[str]:
    return array.reshape(-1).tolist() if array.dtype.kind == "O" else _bytes(array)


def _bytes(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
