"""A loaded model and its warm-up passes, with the version's own example or one generated from its contract.

They show that the model runs, the form of its outputs, and whether it returns one row per input row. Otherwise its jobs
cannot share a batch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.contract import (
    FREE,
    AnyContract,
    ColumnsContract,
    ColumnType,
    Contract,
    TensorContract,
    TensorsContract,
)
from app.contract.documents import read_json, read_python_json
from app.contract.payloads import Payload, to_payload
from app.ledger.wire import Label
from app.server_errors import (
    ModelContractError,
    ModelWarmUpError,
    ModelyardError,
    OutputNotFiniteError,
    first_line,
)
from workers.job_inputs import decode, to_input
from workers.job_outputs import as_rows_of_numbers, check_output, is_finite, n_rows, to_outputs
from workers.model_lookup import ModelVersion

logger = logging.getLogger(__name__)
Predict = Callable[..., Any]  # called with the input, and with parameters if the contract has any
EXAMPLE_FILE = "serving_input_example.json"
LARGEST_EXAMPLE_BYTES = 4096  # maximum size of a published example, because each heartbeat contains it
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready for inference.

    Attributes:
        predict: Takes the input of `workers.job_inputs` for the contract; returns any type.
        device: `cpu` or `cuda:N`.
        allows_non_finite: Whether its outputs may contain NaN and infinities.
        task: The version's declared task, such as `classification`; empty without one.
        example: A request body that it has answered, as JSON; empty if none is known or if it is too large.
        labels: Name of each class, in the order of the scores; empty if unknown.
        takes_matrix: Whether columns are given to it as one matrix; see `workers.job_inputs.to_input`.
    """

    contract: Contract
    predict: Predict
    device: str
    _: KW_ONLY
    allows_non_finite: bool = False
    task: str = ""
    example: str = ""
    labels: list[Label] = field(default_factory=list)
    takes_matrix: bool = False


def said(error: BaseException) -> str:
    """The text of a model's error."""
    if isinstance(error, Exception):
        return first_line(error)
    return f"it raised {type(error).__name__}({error}), which would end its worker"


def warm_up(model: LoadedModel, found: ModelVersion) -> LoadedModel:
    """Run a model once, and once with twice as many rows; returns the model with the observed properties.

    Raises:
        ModelWarmUpError: It fails on its own example, or on zeros if it takes one plain tensor.
        ModelContractError: Its output cannot be encoded.
    """
    example, is_own = _example(found, model.contract)
    if not example:
        logger.info("%s has no signature and no input example: it is not warmed up", found.uri)
        return model
    try:
        payload = _payload(example, model.contract)
    except ModelyardError as error:
        if is_own:
            logger.warning("%s: its input example does not fit its signature: %s", found.uri, error.detail)
        return model if not is_own else warm_up(model, msgspec.structs.replace(found, path=""))
    try:
        outputs = [_run(model, payload, times) for times in ((1, 2) if _may_merge(model.contract) else (1,))]
    except ModelContractError:
        raise
    except BaseException as error:
        what = "its input example" if is_own else "zeros and empty text"
        if is_own or isinstance(model.contract, TensorContract):
            raise ModelWarmUpError(f"{found.uri} fails on {what}: {said(error)}") from error
        logger.warning("%s fails on %s, so its jobs share no batch: %s", found.uri, what, said(error))
        return replace(model, contract=_alone(model.contract))
    if not (model.allows_non_finite or all(map(is_finite, outputs))):
        # No reason to refuse it: a generated example need not be in the model's domain.
        logger.warning(
            "%s answers NaN or infinities to its first input; jobs with such an answer fail as %s: set "
            "MODELYARD_ALLOW_NON_FINITE=true if the model means them",
            found.uri,
            OutputNotFiniteError.code,
        )
    return replace(
        model,
        contract=_proven(model.contract, outputs, payload.n_samples, found.uri),
        example=_published(example),
        labels=_fitting(model.labels, outputs[0], found.uri),
    )


def _fitting(labels: list[Label], output: Any, uri: str) -> list[Label]:
    """The labels, if there is one for each score."""
    numbers = as_rows_of_numbers(output)
    if labels and numbers.ndim == 2 and numbers.shape[1] != len(labels):
        logger.warning(
            "%s has %d labels and answers %d scores; expected as many: its answers are without labels",
            *(uri, len(labels), numbers.shape[1]),
        )
        return []
    return labels


def _may_merge(contract: Contract) -> bool:
    return isinstance(contract, TensorContract) or contract.merges


def _proven(contract: Contract, outputs: list[Any], n_samples: int, uri: str) -> Contract:
    """The contract, adjusted to the model's outputs for one input and for the same input twice."""
    if isinstance(contract, TensorContract):
        if _answers_numbers(outputs, n_samples, uri):
            return contract
        contract = contract.as_tensors
    for output in outputs:
        to_outputs(output)
    has_rows = all(n_rows(each) == n_samples * times for times, each in enumerate(outputs, 1))
    if _may_merge(contract) and not has_rows:
        logger.warning("%s does not answer a row for each row, so its jobs share no batch", uri)
        return _alone(contract)
    return contract


def _answers_numbers(outputs: list[Any], n_samples: int, uri: str) -> bool:
    try:
        for times, output in enumerate(outputs, 1):
            check_output(as_rows_of_numbers(output), n_samples * times, uri)
    except ModelContractError:
        return False
    return True


def _alone(contract: Contract) -> Contract:
    if isinstance(contract, TensorContract):
        contract = contract.as_tensors
    return contract if isinstance(contract, AnyContract) else msgspec.structs.replace(contract, merges=False)


def _run(model: LoadedModel, payload: Payload, times: int) -> Any:
    contract = model.contract
    if isinstance(contract, TensorContract):
        data = bytearray(payload.data * times)
        given: Any = np.frombuffer(data, contract.dtype).reshape(-1, *contract.sample_shape)
    else:
        given = to_input([decode(payload.data)] * times, contract, model.takes_matrix)
    params = payload.form.params if payload.form else b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.predict(given, decode(params)) if params else model.predict(given)


def _payload(example: bytes, contract: Contract) -> Payload:
    return to_payload(read_json(example, "mlflow"), contract, MAX_ROWS, "mlflow")


def _example(found: ModelVersion, contract: Contract) -> tuple[bytes, bool]:
    """A request body for the version, and whether it is the version's own."""
    file = Path(found.path, EXAMPLE_FILE)
    if found.path and file.is_file():
        return file.read_bytes(), True
    if isinstance(contract, AnyContract):
        return b"", False
    return msgspec.json.encode(_made_up(contract)), False


def _made_up(contract: TensorContract | TensorsContract | ColumnsContract) -> Mapping[str, Any]:
    if isinstance(contract, TensorContract):
        contract = contract.as_tensors
    if isinstance(contract, TensorsContract):
        tensors = {str(each.name): _zeros(each.dtype, each.shape) for each in contract.tensors}
        return {"inputs": tensors if contract.tensors[0].name is not None else tensors["None"]}
    row = [_blank(each.type) for each in contract.columns]
    names: list[Any] = [each.name for each in contract.columns]
    return {
        "dataframe_split": {"columns": names if contract.has_names else list(range(len(row))), "data": [row]}
    }


def _published(example: bytes) -> str:
    """An example as JSON that every parser reads: MLflow writes missing values as NaN."""
    document = msgspec.json.encode(read_python_json(example))
    return document.decode() if len(document) <= LARGEST_EXAMPLE_BYTES else ""


def _zeros(dtype: str, shape: tuple[int, ...]) -> Any:
    value: Any = {"str": "", "bool": False}.get(dtype, 0)
    for size in reversed(shape):
        value = [value] * (1 if size == FREE else size)
    return value


def _blank(kind: ColumnType) -> Any:
    if kind.kind == "object":
        return {str(each.name): _blank(each.type) for each in kind.properties if each.required}
    if kind.items:
        return [_blank(kind.items)] if kind.kind == "array" else {"": _blank(kind.items)}
    return {"boolean": False, "string": "", "binary": "", "datetime": "1970-01-01", "any": None}.get(
        kind.kind, 0
    )
