"""A model version, loaded, checked against its signature and warmed up; `registry.py` finds it and its files.

Importing PyTorch takes seconds, so that is left to `load`. MLflow is imported for models that are not `pt2` files.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.contract import DTYPES, InputContract
from app.errors import (
    ModelContractError,
    ModelError,
    ModelNotAllowedError,
    ModelWarmUpError,
    OutputNotFiniteError,
    first_line,
)
from app.model_files import Loading, loading, pt2_file, refusal, require_safe
from app.settings import WorkerSettings
from workers import model_lookup, requirements_check
from workers.model_lookup import ModelVersion

Array = NDArray[Any]
Predict = Callable[[Array], Array]
logger = logging.getLogger(__name__)
# PyTorch's own: whatever it loads then goes through an unpickler that makes tensors and plain containers alone.
TORCH_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
MLFLOW_SWITCH = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
MAX_ITEM_BYTES = 8  # NumPy's longdouble is the one larger number, and no answer can carry it
SKLEARN_METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function")
REHEARSED_BYTES = 64 * 2**20  # of a file: beyond, a second load takes longer than what is saved is worth


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to infer.

    Attributes:
        predict: Takes an array of shape (n, *sample_shape) in the contract's dtype; answers shape (n, …).
        device: `cpu` or `cuda:N`.
        allows_non_finite: Whether NaN and infinities are among its answers.
    """

    contract: InputContract
    predict: Predict
    device: str
    allows_non_finite: bool = False


def find(settings: WorkerSettings, folder: str) -> ModelVersion:
    """Find the version asked for, and import what `load` is going to need; both take seconds, at the same time.

    Starts no thread, opens no device and runs no model, so that the process may fork afterwards.

    Args:
        folder: Where files are downloaded to that are not on this machine.

    Raises:
        ModelNotFoundError: The version does not exist.
        ModelError: It cannot be served.
        RegistryUnavailableError: The registry does not answer.
    """
    with model_lookup.looking_up(settings, folder) as answer:
        if not settings.allow_pickle_models:  # then it most likely takes PyTorch or is refused
            _import_for_pt2()
        found = answer()
    _require_servable(found, settings)
    _import_for(found)
    _rehearse(found, settings)
    return found


def _import_for(found: ModelVersion) -> None:
    kind = _loading(found).kind
    with suppress(ImportError):  # `load` will tell
        if kind == "pt2":
            _import_for_pt2()
        elif kind == "skops":
            import skops.io  # noqa: F401
        elif "pytorch" in found.flavors:
            import mlflow.pytorch
        else:
            import mlflow.pyfunc  # noqa: F401


def _loading(found: ModelVersion) -> Loading:
    return loading(found.flavors, Path(found.path))


def _import_for_pt2() -> None:
    import torch.export.pt2_archive

    with suppress(ImportError):  # what PyTorch else imports while it loads is its own affair, and costs 0.2 s
        import torch.export._trace  # noqa: F401


def _rehearse(found: ModelVersion, settings: WorkerSettings) -> None:
    """Load a small pt2 file once and let it go: what PyTorch keeps of its first one is then shared by all that fork."""
    with suppress(Exception):  # `load` will tell
        if (
            _loading(found).kind == "pt2"
            and pt2_file(found.flavors, Path(found.path)).stat().st_size <= REHEARSED_BYTES
        ):
            import torch

            torch.set_num_threads(1)  # others would not live through a fork; `load` sets what is asked for
            _read_pt2(found, settings).module()


def load(found: ModelVersion, settings: WorkerSettings) -> LoadedModel:
    """Load a version and warm it up.

    Raises:
        ModelNotAllowedError: Loading it runs code, and the settings do not allow that; its signature may be wrong, too.
        ModelContractError: Its signature is not one tensor with a free first dimension, or it breaks it.
        ModelWarmUpError: It cannot be loaded, or fails on a warm-up input.
    """
    _require_servable(found, settings)
    how, contract = _loading(found), _contract(found)
    if how.kind == "pt2":
        return _load_torch(found, contract, settings, _load_pt2)
    if how.kind == "skops":
        return _warm(found, contract, partial(_load_skops, found, how.file), "cpu", settings)
    if how.kind == "code":
        logger.warning("MODELYARD_ALLOW_PICKLE_MODELS is set: %s %s", found.uri, how.reason)
    if "pytorch" in found.flavors:
        return _load_torch(found, contract, settings, _load_pickled)
    return _warm(found, contract, partial(_load_pyfunc, found, settings, how.kind == "code"), "cpu", settings)


def obstacles(found: ModelVersion, settings: WorkerSettings) -> list[ModelError]:
    """Everything that keeps a version from being served, so far as that shows before it is loaded."""
    problems: list[ModelError] = []
    try:
        if not settings.allow_pickle_models:
            require_safe(found.flavors, Path(found.path), found.uri)
    except ModelNotAllowedError as error:
        problems.append(error)
    try:
        _contract(found)
    except ModelContractError as error:
        problems.append(error)
    return [*problems, *requirements_check.obstacles(found, settings)]


def _require_servable(found: ModelVersion, settings: WorkerSettings) -> None:
    problems = obstacles(found, settings)
    if problems:
        raise type(problems[0])(". Besides, ".join(each.detail for each in problems))


def _contract(found: ModelVersion) -> InputContract:
    if len(found.inputs) != 1:
        raise ModelContractError(
            f"{found.uri} must have a signature with exactly one tensor input; log it with "
            "signature=ModelSignature(inputs=Schema([TensorSpec(dtype, (-1, …))]), …)"
        )
    [(dtype, shape)] = found.inputs
    if dtype not in DTYPES or shape[:1] != (-1,) or any(size < 1 for size in shape[1:]):
        raise ModelContractError(
            f"{found.uri} takes {dtype} of shape {shape}; expected numbers with a free first dimension and fixed "
            "others, as in float32 (-1, 1, 28, 28)"
        )
    return InputContract(dtype, shape[1:])


def _load_torch(
    found: ModelVersion,
    contract: InputContract,
    settings: WorkerSettings,
    make: Callable[[ModelVersion, str, WorkerSettings], Predict],
) -> LoadedModel:
    """Load it on the first device that it works on; an exported model may hold what cannot leave the CPU."""
    import torch

    torch.set_num_threads(settings.torch_threads)
    *tried_first, last = _torch_devices(settings)
    for device in tried_first:
        try:
            return _warm(found, contract, partial(make, found, device, settings), device, settings)
        except ModelWarmUpError as error:
            logger.warning("%s; trying %s", error.detail, last)
    return _warm(found, contract, partial(make, found, last, settings), last, settings)


def _torch_devices(settings: WorkerSettings) -> list[str]:
    import torch

    if settings.device != "auto":
        return [settings.device]
    return ["cuda:0", "cpu"] if torch.cuda.is_available() else ["cpu"]


def _load_pt2(found: ModelVersion, device: str, settings: WorkerSettings) -> Predict:
    import torch
    from torch.export.passes import move_to_device_pass

    written_by = found.flavors["pytorch"].get("pytorch_version")
    if written_by != torch.__version__:
        logger.warning("%s was written by PyTorch %s, this is %s", found.uri, written_by, torch.__version__)
    try:
        program = _read_pt2(found, settings)
    except pickle.UnpicklingError as error:
        if settings.allow_pickle_models:
            raise
        raise refusal(found.uri, "is a pt2 file with a pickle inside") from error
    if device != "cpu":  # a module's own `to` would leave behind what the graph makes, and its constants
        program = move_to_device_pass(program, device)
    return _on(device, _checked_once(program))


def _checked_once(program: Any) -> Callable[[Any], Any]:
    """An exported program, which looks at its input's shape once for each number of samples.

    Its guards are conditions on sizes, all of which but the first are the contract's, checked before the queue. To a
    small model they cost a third as much as its work.
    """
    guarded, unguarded = program.module().forward, program.module(check_guards=False).forward
    known: set[int] = set()

    def run(samples: Any) -> Any:
        n_samples = samples.shape[0]
        if n_samples in known:
            return unguarded(samples)
        output = guarded(samples)
        known.add(n_samples)
        return output

    return run


def _read_pt2(found: ModelVersion, settings: WorkerSettings) -> Any:
    import torch

    if not settings.allow_pickle_models:
        os.environ[TORCH_SWITCH] = "1"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is refused all the same
        return torch.export.load(pt2_file(found.flavors, Path(found.path)))


def _load_pickled(found: ModelVersion, device: str, settings: WorkerSettings) -> Predict:
    import mlflow.pytorch

    os.environ[MLFLOW_SWITCH] = "true"
    return _on(device, mlflow.pytorch.load_model(found.path).to(device))


def _on(device: str, run: Callable[[Any], Any]) -> Predict:
    import torch

    def predict(samples: Array) -> Array:
        with torch.inference_mode():
            output: Array = run(torch.from_numpy(samples).to(device)).cpu().numpy()
            return output

    return predict


def _load_skops(found: ModelVersion, file: str) -> Predict:
    """A scikit-learn model in the one of its formats that unpickles nothing; MLflow would want its pickle switch on."""
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    asked = found.flavors["python_function"].get("predict_fn", "predict")
    if asked not in SKLEARN_METHODS:
        raise ModelWarmUpError(
            f"{found.uri} predicts by {asked}; expected one of {', '.join(SKLEARN_METHODS)}"
        )
    try:
        predict = getattr(skops.io.load(Path(found.path, file), trusted=[]), asked)
    except UntrustedTypesFoundException as error:
        raise refusal(
            found.uri, f"holds types that skops does not trust ({file}: {first_line(error)})"
        ) from error
    return lambda samples: np.asarray(predict(samples))


def _load_pyfunc(found: ModelVersion, settings: WorkerSettings, may_unpickle: bool) -> Predict:
    import mlflow.pyfunc

    os.environ[MLFLOW_SWITCH] = str(may_unpickle).lower()
    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    model = mlflow.pyfunc.load_model(found.path)

    def predict(samples: Array) -> Array:
        answer = model.predict(samples)
        if isinstance(answer, dict) and len(answer) == 1:  # ONNX models name their outputs
            (answer,) = answer.values()
        return np.asarray(answer)

    return predict


def _warm(
    found: ModelVersion,
    contract: InputContract,
    make: Callable[[], Predict],
    device: str,
    settings: WorkerSettings,
) -> LoadedModel:
    try:
        model = LoadedModel(contract, make(), device, settings.allow_non_finite)
    except ModelNotAllowedError:
        raise
    except BaseException as error:  # a model may call `sys.exit`
        raise ModelWarmUpError(f"{found.uri} cannot be loaded on {device}: {_said(error)}") from error
    _warm_up(model, found.uri)
    return model


def _warm_up(model: LoadedModel, uri: str) -> None:
    for n_samples in (1, 2):
        zeros = np.zeros((n_samples, *model.contract.sample_shape), model.contract.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = model.predict(zeros)
        except BaseException as error:
            raise ModelWarmUpError(f"{uri} fails on {n_samples} zero sample(s): {_said(error)}") from error
        check_output(output, n_samples, uri)
    # No reason to refuse it: zeros need not be in the model's domain.
    if not (model.allows_non_finite or np.isfinite(output).all()):
        logger.warning(
            "%s answers NaN or infinities to zeros; jobs with such an answer fail as %s: set "
            "MODELYARD_ALLOW_NON_FINITE=true if the model means them",
            uri,
            OutputNotFiniteError.code,
        )


def _said(error: BaseException) -> str:
    if isinstance(error, Exception):
        return first_line(error)
    return f"it raised {type(error).__name__}({error}), which would end its worker"


def check_output(output: Array, n_samples: int, name: str) -> None:
    """Check that a model answered one row of numbers per sample. Whether they are finite is a matter of each job.

    Raises:
        ModelContractError: It did not.
    """
    is_numeric = output.dtype.kind in "fiub" and output.itemsize <= MAX_ITEM_BYTES
    if not is_numeric or output.ndim not in (1, 2) or len(output) != n_samples or not output.size:
        raise ModelContractError(
            f"{name} answered {output.dtype} of shape {output.shape} to {n_samples} sample(s); "
            f"expected numbers of at most 64 bits, shape ({n_samples},) or ({n_samples}, n_scores)"
        )
