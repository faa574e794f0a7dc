"""Loads one registered version in this process and predicts with it, without a server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.model_files import refusal, require_safe
from app.registry_database import examine, others_beside
from app.server_errors import ModelContractError, ModelNotFoundError, first_line
from modelyard.digits import CLASSES, Images
from training.inventory import connect, registry_errors
from training.registry import MODEL_ARTIFACT

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second: an unknown alias


def load(model_uri: str, tracking_uri: str, allow_pickle: bool = False) -> PyFuncModel:
    """Load a version.

    Args:
        model_uri: ``models:/name/version``, ``models:/name@alias``, a run id, or another of MLflow's model URIs.
        tracking_uri: The registry it is in.
        allow_pickle: Whether to load models that may run arbitrary code.

    Raises:
        ModelNotAllowedError: Loading it may run arbitrary code.
        ModelNotFoundError: The registry has no such version, alias or run.
        RegistryUnavailableError: The registry does not answer.
    """
    if examine(tracking_uri) in ("missing", "empty"):
        raise ModelNotFoundError(
            f"there is no {tracking_uri} to find {model_uri} in{others_beside(tracking_uri)}; run `modelyard train`"
        )
    # On a machine with CUDA, MLflow would select it, which fails for a graph that was exported on the CPU.
    os.environ.setdefault("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")
    connect(tracking_uri)
    import mlflow
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    uri = f"runs:/{model_uri}/{MODEL_ARTIFACT}" if _RUN_ID.fullmatch(model_uri) else model_uri
    with registry_errors(tracking_uri):
        try:
            path = mlflow.artifacts.download_artifacts(uri)
            flavors = Model.load(path).flavors
            # MLflow treats skops as a pickle, because a model may contain custom types; this one does not.
            may_load = allow_pickle or require_safe(flavors, Path(path), model_uri).kind == "skops"
            os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = str(may_load).lower()
            return mlflow.pyfunc.load_model(path)
        except TypeError as error:  # of skops
            raise refusal(model_uri, f"holds types that skops does not trust: {first_line(error)}") from error
        except MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise
            raise ModelNotFoundError(
                f"{tracking_uri} has no {model_uri}: {first_line(error).rstrip('.')}{others_beside(tracking_uri)}; "
                "give models:/name/version, models:/name@alias or a run id"
            ) from None


def scores(model: PyFuncModel, images: Images) -> NDArray[np.float32]:
    """Score images.

    Args:
        model: The result of `load`.
        images: float32, shape (n_samples, 1, 28, 28), in [0, 1].

    Returns:
        float32, shape (n_samples, 10); probabilities for models of `modelyard train`.

    Raises:
        ModelContractError: The model has another input or output.
    """
    from mlflow.exceptions import MlflowException

    try:
        answer: Any = np.asarray(model.predict(images), dtype=np.float32)
    except (MlflowException, ValueError, TypeError, RuntimeError) as error:
        raise ModelContractError(
            f"the model does not take float32 images of shape {images.shape}: {first_line(error).rstrip('.')}"
        ) from None
    if answer.shape != (len(images), CLASSES):
        raise ModelContractError(
            f"the model answered shape {answer.shape}; expected {(len(images), CLASSES)}, a score for each digit"
        )
    return np.asarray(answer)
