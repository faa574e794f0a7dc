"""Loads a model version, checks it against its signature and warms it up; `model_lookup` finds its files.

PyTorch and MLflow take seconds to import. So only `preload` and `load` import them, and only for versions that need
them: PyTorch for `pt2` files and pickled modules, MLflow for versions that are neither `pt2`, ONNX nor skops.

Relies on: the private module `torch.export._trace`, imported early if it is there, which saves 0.2 s of each load;
`_MLFLOW_IS_IN_SERVING_ENVIRONMENT`, which MLflow's scoring server sets as well.
Breaks if: nothing; without the module PyTorch imports its modules during the load, without the variable MLflow refuses
text for the type hints `datetime` and `bytes` (a test holds it).
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pickle
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import AnyContract, ColumnsContract, Contract, TensorContract, TensorsContract
from app.contract.documents import Document
from app.ledger.wire import Label
from app.model_files import Loading, loading, pt2_file, refusal, require_safe
from app.server_errors import (
    InputShapeError,
    InputTypeError,
    ModelContractError,
    ModelError,
    ModelNotAllowedError,
    ModelWarmUpError,
    first_line,
)
from app.settings import WorkerSettings
from workers import lightgbm_model, model_lookup, onnx_model, requirements_check
from workers.job_inputs import read_unread
from workers.job_outputs import CLASSIFICATION
from workers.model_lookup import ModelVersion
from workers.process import fork_client
from workers.signature import read_contract
from workers.warm_up import LoadedModel, Predict, said, warm_up

Array = NDArray[Any]
# A model's function, and the estimator behind it if there is one.
Built: TypeAlias = tuple[Predict, Any]
logger = logging.getLogger(__name__)
# PyTorch's own switch: all loading then uses an unpickler that creates only tensors and plain containers.
TORCH_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
MLFLOW_SWITCH = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
# Makes MLflow read text as times and bytes where a model's type hints say so.
MLFLOW_SERVES = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
TAKE_MISSING = ("xgboost", "lightgbm", "catboost")  # flavors whose trees handle missing values
SKLEARN_METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function")
HINT_MISFIT = "match type hint, error: "  # MLflow's words before those of pydantic
PT2_MODULES = ("torch.export.pt2_archive", "torch.export._trace", "workers.pt2_rehearsal")


def find(settings: WorkerSettings, folder: str) -> ModelVersion:
    """Find the configured version and check whether it can be served.

    Args:
        folder: Download folder for files that are not on this machine.

    Raises:
        ModelNotFoundError: The version does not exist.
        ModelError: It cannot be served.
        RegistryUnavailableError: The registry does not answer.
    """
    found = model_lookup.read_version(settings, folder)
    if settings.task:
        found = msgspec.structs.replace(found, task=settings.task)
    _require_servable(found, settings)
    return found


def preload(found: ModelVersion) -> None:
    """Import the libraries that `load` needs.

    Starts no thread, opens no device and runs no model, so that the process can fork afterwards.
    """
    modules = _modules_for(found)
    fork_client.require_imports(modules)
    for module in modules:
        with suppress(Exception):  # `load` will tell
            importlib.import_module(module)


def _modules_for(found: ModelVersion) -> Sequence[str]:
    """Modules that loading the version needs; none of them is the author's own code."""
    kind = _loading(found).kind
    if kind == "onnx":  # importing ONNX Runtime starts a thread, which would not survive the fork
        return ()
    if kind == "pt2":
        return PT2_MODULES
    if kind == "skops":
        return ("skops.io",)
    if "pytorch" in found.flavors:
        return ("mlflow.pytorch",)
    libraries = [name for name in ("sklearn", "xgboost", "lightgbm") if name in found.flavors]
    return ("mlflow.pyfunc", *libraries, *(f"mlflow.{name}" for name in libraries))


def _loading(found: ModelVersion) -> Loading:
    return loading(found.flavors, Path(found.path))


def load(found: ModelVersion, settings: WorkerSettings) -> LoadedModel:
    """Load a version and warm it up.

    Raises:
        ModelNotAllowedError: Loading it runs code, which the settings do not allow; its signature may be invalid, too.
        ModelContractError: Its signature cannot be enforced, or its outputs violate it.
        ModelWarmUpError: It cannot be loaded, or it fails on a warm-up input.
    """
    _require_servable(found, settings)
    how, contract = _loading(found), _contract(found)
    if how.kind == "pt2":
        return _load_torch(found, contract, settings, _load_pt2)
    if how.kind == "onnx":
        onnx_model.require_runtime(found.uri)
        return _on_first_device(found, contract, settings, _load_onnx, onnx_model.has_cuda)
    if how.kind == "skops":
        return _warm(found, contract, partial(_load_skops, found, how.file), "cpu", settings)
    if how.kind == "code":
        logger.warning("MODELYARD_ALLOW_PICKLE_MODELS is set: %s %s", found.uri, how.reason)
    if "pytorch" in found.flavors and isinstance(contract, TensorContract | TensorsContract):
        return _load_torch(found, contract, settings, _load_pickled)
    build = partial(_load_pyfunc, found, contract, settings, how.kind == "code")
    return _warm(found, contract, build, "cpu", settings)


def obstacles(found: ModelVersion, settings: WorkerSettings) -> list[ModelError]:
    """All reasons against serving a version that are known before loading it."""
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


def _contract(found: ModelVersion) -> Contract:
    takes_missing = any(flavor in found.flavors for flavor in TAKE_MISSING)
    try:
        return read_contract(found.signature, takes_missing=takes_missing)
    except ModelContractError as error:
        raise ModelContractError(f"{found.uri} cannot be served: {error.detail}") from None


def _load_torch(
    found: ModelVersion,
    contract: Contract,
    settings: WorkerSettings,
    build: Callable[[ModelVersion, str, WorkerSettings], Built],
) -> LoadedModel:
    import torch

    torch.set_num_threads(settings.torch_threads)
    return _on_first_device(found, contract, settings, build, torch.cuda.is_available)


def _on_first_device(
    found: ModelVersion,
    contract: Contract,
    settings: WorkerSettings,
    build: Callable[[ModelVersion, str, WorkerSettings], Built],
    has_cuda: Callable[[], bool],
) -> LoadedModel:
    """Load it on the set device, or on the first one on which it works: parts of an exported model may need the CPU."""
    device = settings.device
    if device == "auto":
        device = "cpu"
        if has_cuda():
            try:
                return _warm(found, contract, partial(build, found, "cuda:0", settings), "cuda:0", settings)
            except ModelWarmUpError as error:
                logger.warning("%s; trying %s", error.detail, device)
    return _warm(found, contract, partial(build, found, device, settings), device, settings)


def _load_pt2(found: ModelVersion, device: str, settings: WorkerSettings) -> Built:
    import torch

    written_by = found.flavors["pytorch"].get("pytorch_version")
    if written_by != torch.__version__:
        logger.warning("%s was written by PyTorch %s, this is %s", found.uri, written_by, torch.__version__)
    try:
        program = _read_pt2(found, settings)
    except pickle.UnpicklingError as error:
        if settings.allow_pickle_models:
            raise
        raise refusal(found.uri, "is a pt2 file with a pickle inside") from error
    # `Module.to` would not move the graph's constants and the tensors that the graph creates.
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    names = _input_names(program.call_spec.in_spec, iter(program.graph_signature.user_inputs))
    return _torch_predict(device, _checked_once(program), names), None


def _checked_once(program: Any) -> Callable[..., Any]:
    """Wrap an exported program so that it checks each input shape only once.

    Its guards are conditions on sizes. The contract states these sizes, apart from free dimensions, and they are
    checked before the queue. For a small model the guards cost a third of its forward pass.
    """
    guarded, unguarded = program.module().forward, program.module(check_guards=False).forward
    form = program.call_spec.in_spec  # of the positional and the named arguments
    is_flat = not form.child(1).num_children and all(each.is_leaf() for each in form.child(0).children())
    known: set[Any] = set()

    def run(*tensors: Any) -> Any:
        shapes = tensors[0].shape if len(tensors) == 1 else tuple([each.shape for each in tensors])
        forward = unguarded if shapes in known else guarded
        if is_flat:
            output = forward(*tensors)
        else:
            arguments, named = form.unflatten(tensors)
            output = forward(*arguments, **named)
        known.add(shapes)
        return output

    return run


def _input_names(form: Any, arguments: Iterator[str]) -> list[str]:
    """Names of a program's tensors, in its order: keys of dictionaries, otherwise the names of the arguments."""
    if form.is_leaf():
        return [next(arguments)]
    children = form.children()
    keys = form.context if form.type is dict else [None] * len(children)
    names = []
    for key, child in zip(keys, children, strict=True):
        inner = _input_names(child, arguments)
        names += inner if key is None or len(inner) > 1 else [str(key)]
    return names


def _read_pt2(found: ModelVersion, settings: WorkerSettings) -> Any:
    import torch

    if not settings.allow_pickle_models:
        os.environ[TORCH_SWITCH] = "1"
    with warnings.catch_warnings():
        # It is refused unless the switch is set.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.export.load(pt2_file(found.flavors, Path(found.path)))


def _load_pickled(found: ModelVersion, device: str, settings: WorkerSettings) -> Built:
    import mlflow.pytorch

    os.environ[MLFLOW_SWITCH] = "true"
    module = mlflow.pytorch.load_model(found.path).to(device)
    return _torch_predict(device, module, list(inspect.signature(module.forward).parameters)), None


def _torch_predict(device: str, run: Callable[..., Any], names: Sequence[str]) -> Predict:
    """Wrap a PyTorch model so that it is called with arrays.

    Args:
        names: Names of its inputs, in order. Several tensors are passed by name if the contract has the same names.
    """
    import torch

    def predict(samples: Any, params: Mapping[str, Any] | None = None) -> Any:
        with torch.inference_mode():
            if type(samples) is dict:
                ordered = (
                    [samples[name] for name in names] if samples.keys() == set(names) else samples.values()
                )
                output = run(*[torch.from_numpy(each).to(device) for each in ordered])
            elif hasattr(samples, "iloc"):  # MLflow's own rule for a DataFrame
                output = run(torch.from_numpy(samples.to_numpy(np.float32)).to(device))
            else:
                output = run(torch.from_numpy(samples).to(device))
            return output.cpu().numpy() if isinstance(output, torch.Tensor) else _to_numpy(output)

    return predict


def _to_numpy(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {str(name): _to_numpy(each) for name, each in output.items()}
    if isinstance(output, tuple | list):
        return tuple(map(_to_numpy, output))
    return output.cpu().numpy() if hasattr(output, "cpu") else output


def _load_onnx(found: ModelVersion, device: str, settings: WorkerSettings) -> Built:
    file = str(Path(found.path, _loading(found).file))
    return onnx_model.OnnxModel(file, device, settings.torch_threads).predict, None


def _load_skops(found: ModelVersion, file: str) -> Built:
    """Load a scikit-learn model in the skops format, which unpickles nothing; MLflow would require a pickle switch."""
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    asked = found.flavors["python_function"].get("predict_fn", "predict")
    if asked not in SKLEARN_METHODS:
        raise ModelWarmUpError(
            f"{found.uri} has the predict method {asked}; expected one of {', '.join(SKLEARN_METHODS)}"
        )
    try:
        estimator = skops.io.load(Path(found.path, file), trusted=[])
    except UntrustedTypesFoundException as error:
        raise refusal(
            found.uri, f"holds types that skops does not trust ({file}: {first_line(error)})"
        ) from error
    return partial(_without_params, getattr(estimator, asked)), estimator


def _without_params(predict: Callable[[Any], Any], samples: Any, params: Any = None) -> Any:
    """Call a method that takes no parameters."""
    return predict(samples)


def _load_pyfunc(
    found: ModelVersion, contract: Contract, settings: WorkerSettings, may_unpickle: bool
) -> Built:
    import mlflow.pyfunc

    os.environ[MLFLOW_SWITCH] = str(may_unpickle).lower()
    os.environ[MLFLOW_SERVES] = "true"
    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    model = mlflow.pyfunc.load_model(found.path)
    if isinstance(contract, ColumnsContract) and _is_complete(contract):
        # Each DataFrame has the signature's columns and types: MLflow would copy it column by column, unchanged.
        model.metadata.signature = None
    raw = None
    with suppress(Exception):  # not every flavor gives its model
        raw = model.get_raw_model()
    texts = _texts(found)
    return partial(_predict_texts, model.predict, texts) if texts else model.predict, raw


def _is_complete(contract: ColumnsContract) -> bool:
    """Whether each DataFrame has all columns of the signature, without lists or objects, and nothing beside them."""
    return contract.is_flat and not contract.params and all(each.required for each in contract.columns)


def _texts(found: ModelVersion) -> set[str | None]:
    """Names of the tensors whose dtype is `str` in the signature: MLflow refuses arrays of objects for them."""
    tensors = [each for each in found.signature.get("inputs") or () if each["type"] == "tensor"]
    return {each.get("name") for each in tensors if np.dtype(each["tensor-spec"]["dtype"]).kind == "U"}


def _predict_texts(
    predict: Predict, texts: set[str | None], samples: Any, params: Mapping[str, Any] | None = None
) -> Any:
    if isinstance(samples, Mapping):
        given: Any = {name: each.astype(str) if name in texts else each for name, each in samples.items()}
    else:
        given = samples.astype(str)
    return predict(given, params)


def _from_document(predict: Predict, is_own: bool) -> Predict:
    """Wrap a model so that it takes a document, parsed as MLflow's scoring server does."""

    def predict_document(document: Document, params: Mapping[str, Any] | None = None) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            data = read_unread(document, is_own)
        except (MlflowException, ValueError) as error:
            raise InputShapeError(
                f"the body cannot be read as {document.key}: {first_line(error)}"
            ) from error
        try:
            return predict(data, params)
        except MlflowException as error:
            if is_own and _is_refusal(error):
                raise InputTypeError(
                    f"the input does not fit the model's type hint: {_misfit(error.message)}"
                ) from error
            raise

    return predict_document


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow refused the input before it called the model: then each frame below ours is MLflow's."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return all(name.startswith("mlflow.") for name in modules[1:])


def _misfit(message: str) -> str:
    """The part of MLflow's message that says what is wrong: a row, which may be long, stands before and after it."""
    _, _, reason = message.partition(HINT_MISFIT)
    return " ".join(re.sub(r"\\+n", " ", reason or message).split())[:300]


def _warm(
    found: ModelVersion,
    contract: Contract,
    build: Callable[[], Built],
    device: str,
    settings: WorkerSettings,
) -> LoadedModel:
    try:
        predict, estimator = build()
    except ModelNotAllowedError:
        raise
    except BaseException as error:  # a model may call `sys.exit`
        raise ModelWarmUpError(f"{found.uri} cannot be loaded on {device}: {said(error)}") from error
    takes_matrix = lightgbm_model.takes_matrix(estimator, found, contract)
    if takes_matrix:
        predict = partial(_without_params, estimator.predict)
    if isinstance(contract, AnyContract):
        predict = _from_document(predict, contract.is_own)
    labels = _labels(found, estimator) if found.task == CLASSIFICATION else []
    model = LoadedModel(
        contract,
        predict,
        device,
        allows_non_finite=settings.allow_non_finite,
        task=found.task,
        labels=labels,
        takes_matrix=takes_matrix,
    )
    return warm_up(model, found)


def _labels(found: ModelVersion, estimator: Any) -> list[Label]:
    """Names of a classifier's classes: declared ones, else the estimator's, else those of its output columns.

    Numbers from 0 are no names: they are the classes themselves.
    """
    columns = found.signature.get("outputs") or ()
    named = [each["name"] for each in columns if each.get("name") and each["type"] != "tensor"]
    return next(filter(_are_names, (found.labels, _classes(estimator), named)), [])


def _classes(estimator: Any) -> list[Any]:
    # Some estimators have the attribute without a value, and it may be the author's code.
    with suppress(Exception):
        classes = np.asarray(estimator.classes_)
        return classes.tolist() if classes.ndim == 1 else []
    return []


def _are_names(labels: list[Any]) -> bool:
    are_classes = all(type(each) is int and each == place for place, each in enumerate(labels))
    return not are_classes and all(isinstance(each, str | int | float) for each in labels)
