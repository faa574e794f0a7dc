"""A model version of the MLflow registry, loaded, checked against its signature and warmed up.

The only file that imports mlflow and torch. Importing either takes seconds, so that is left to `load`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
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
    ModelNotFoundError,
    ModelWarmUpError,
    RegistryUnavailableError,
    first_line,
)
from app.model_files import refusal, require_pt2
from app.settings import WorkerSettings

Array = NDArray[Any]
Predict = Callable[[Array], Array]
logger = logging.getLogger(__name__)
VAL_ACCURACY = "val_accuracy"
# On by default; off, MLflow also looks for pickles inside a pt2 file, and its refusal names the switch.
MLFLOW_SWITCH = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for an unknown alias


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered model's version, as the registry describes it.

    Attributes:
        val_accuracy: Fraction in [0, 1] logged on the version's run, or None.
    """

    name: str
    version: int
    run_id: str
    val_accuracy: float | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to infer.

    Attributes:
        predict: Takes an array of shape (n, *sample_shape) in the contract's dtype; answers shape (n, …).
        device: `cpu` or `cuda:N`.
    """

    contract: InputContract
    predict: Predict
    device: str


def resolve(settings: WorkerSettings) -> ModelVersion:
    """Find the version asked for; an alias or `latest` becomes the number it stands for now.

    Raises:
        ModelNotFoundError: The registry has no such model, version or alias.
        RegistryUnavailableError: The registry does not answer.
    """
    _require_database(settings.mlflow_tracking_uri)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    try:
        return _find(mlflow.MlflowClient(), settings.model_name, settings.model_version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            raise _not_found(mlflow.MlflowClient(), settings) from None
        raise RegistryUnavailableError(
            f"the MLflow registry at {settings.mlflow_tracking_uri} does not answer "
            f"({first_line(error)}); check MLFLOW_TRACKING_URI"
        ) from error


def load(found: ModelVersion, settings: WorkerSettings) -> LoadedModel:
    """Load a version and warm it up.

    Raises:
        ModelNotAllowedError: It is not a `pt2` file, and the settings allow no other.
        ModelContractError: Its signature is not one tensor with a free first dimension, or it breaks it.
        ModelWarmUpError: It cannot be loaded, or fails on a warm-up input.
    """
    import mlflow
    from mlflow.models import Model

    uri = f"models:/{found.name}/{found.version}"
    os.environ[MLFLOW_SWITCH] = str(settings.allow_pickle_models).lower()
    try:
        path = mlflow.artifacts.download_artifacts(uri)
        description = Model.load(path)
        _require_allowed(description.flavors, path, uri, settings)
        contract = _contract(description.signature, uri)
    except ModelError:
        raise
    except Exception as error:
        raise ModelWarmUpError(f"{uri} cannot be loaded: {first_line(error)}") from error
    if "pytorch" not in description.flavors:
        return _warm(uri, contract, partial(_load_pyfunc, path), "cpu")
    *tried_first, last = _torch_devices(settings)
    for device in tried_first:
        try:
            return _warm(uri, contract, partial(_load_torch, path, device, settings.torch_threads), device)
        except ModelWarmUpError as error:
            logger.warning("%s; trying %s", error.detail, last)
    return _warm(uri, contract, partial(_load_torch, path, last, settings.torch_threads), last)


def _require_allowed(flavors: dict[str, Any], path: str, uri: str, settings: WorkerSettings) -> None:
    try:
        require_pt2(flavors, Path(path), uri)
    except ModelNotAllowedError as error:
        if not settings.allow_pickle_models:
            raise
        logger.warning("MODELYARD_ALLOW_PICKLE_MODELS is set: %s", error.detail.partition(";")[0])


def _torch_devices(settings: WorkerSettings) -> list[str]:
    """Devices to try, in order; an exported model may hold constants that cannot leave the CPU."""
    import torch

    if settings.device != "auto":
        return [settings.device]
    return ["cuda:0", "cpu"] if torch.cuda.is_available() else ["cpu"]


def _warm(uri: str, contract: InputContract, make: Callable[[], Predict], device: str) -> LoadedModel:
    try:
        model = LoadedModel(contract, make(), device)
    except Exception as error:
        if MLFLOW_SWITCH in str(error):
            raise refusal(uri, "is a pt2 file with a pickle inside") from error
        raise ModelWarmUpError(f"{uri} cannot be loaded on {device}: {first_line(error)}") from error
    _warm_up(model, uri)
    return model


def _find(client: Any, name: str, wanted: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    if wanted.isdigit():
        version = client.get_model_version(name, wanted)
    elif wanted == "latest":
        versions = client.search_model_versions(f"name = '{name}'")
        if not versions:  # there is no such model, or all its versions were deleted
            raise MlflowException(f"{name} has no version", RESOURCE_DOES_NOT_EXIST)
        version = max(versions, key=lambda each: int(each.version))
    else:
        version = client.get_model_version_by_alias(name, wanted)
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    return ModelVersion(name, int(version.version), version.run_id or "", metrics.get(VAL_ACCURACY))


def _not_found(client: Any, settings: WorkerSettings) -> ModelNotFoundError:
    name = settings.model_name
    versions = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
    known = (
        f"it has version {', '.join(map(str, versions))}" if versions else "it has no version of that model"
    )
    return ModelNotFoundError(
        f"the registry at {settings.mlflow_tracking_uri} has no {name} / {settings.model_version}: {known}; "
        "set MODEL_NAME and MODEL_VERSION to one that exists, or register it with `modelyard train`"
    )


def _require_database(tracking_uri: str) -> None:
    # MLflow would create an empty database at a mistyped path, and report only that the model is missing.
    path = tracking_uri.removeprefix("sqlite:///")
    if path != tracking_uri and not Path(path).exists():
        raise RegistryUnavailableError(
            f"MLFLOW_TRACKING_URI={tracking_uri} names a database that does not exist; "
            "start in the folder that holds it, or run `modelyard train` first"
        )


def _contract(signature: Any, uri: str) -> InputContract:
    specs = signature.inputs.inputs if signature and signature.inputs else []
    if len(specs) != 1 or not signature.inputs.is_tensor_spec():
        raise ModelContractError(
            f"{uri} must have a signature with exactly one tensor input; log it with "
            "signature=ModelSignature(inputs=Schema([TensorSpec(dtype, (-1, …))]), …)"
        )
    dtype, shape = specs[0].type.name, tuple(int(size) for size in specs[0].shape)
    if dtype not in DTYPES or shape[:1] != (-1,) or any(size < 1 for size in shape[1:]):
        raise ModelContractError(
            f"{uri} takes {dtype} of shape {shape}; expected numbers with a free first dimension and fixed "
            "others, as in float32 (-1, 1, 28, 28)"
        )
    return InputContract(dtype, shape[1:])


def _load_torch(path: str, device: str, threads: int) -> Predict:
    import mlflow.pytorch
    import torch

    torch.set_num_threads(threads)
    model = mlflow.pytorch.load_model(path)
    if device != "cpu":
        model = model.to(device)
    # Calling an exported graph checks its input anew, which takes a small model as long as its work. The contract
    # has been checked before the queue, and the guards within the graph stay.
    run = model.forward if isinstance(model, torch.fx.GraphModule) else model

    def predict(samples: Array) -> Array:
        with torch.inference_mode():
            output: Array = run(torch.from_numpy(samples).to(device)).cpu().numpy()
            return output

    return predict


def _load_pyfunc(path: str) -> Predict:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(path)

    def predict(samples: Array) -> Array:
        answer = model.predict(samples)
        if isinstance(answer, dict) and len(answer) == 1:  # ONNX models name their outputs
            (answer,) = answer.values()
        return np.asarray(answer)

    return predict


def _warm_up(model: LoadedModel, uri: str) -> None:
    for n_samples in (1, 2):
        zeros = np.zeros((n_samples, *model.contract.sample_shape), model.contract.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = model.predict(zeros)
        except Exception as error:
            raise ModelWarmUpError(
                f"{uri} fails on {n_samples} zero sample(s): {first_line(error)}"
            ) from error
        check_output(output, n_samples, uri)


def check_output(output: Array, n_samples: int, name: str) -> None:
    """Check that a model answered one row of numbers per sample.

    Raises:
        ModelContractError: It did not.
    """
    if output.ndim not in (1, 2) or len(output) != n_samples or output.dtype.kind not in "fiub":
        raise ModelContractError(
            f"{name} answered {output.dtype} of shape {output.shape} to {n_samples} sample(s); "
            f"expected numbers of shape ({n_samples},) or ({n_samples}, n_scores)"
        )
