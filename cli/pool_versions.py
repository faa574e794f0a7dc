"""Which model versions a pool serves: those asked for, else the newest registered ones."""

from __future__ import annotations

import os
from pathlib import Path

from app.errors import ModelNotFoundError, RegistryUnavailableError
from app.settings import Settings

DEFAULT_COUNT = 2


def registered_versions(settings: Settings) -> list[int]:
    """Versions of the settings' model in the MLflow registry, oldest first.

    Raises:
        RegistryUnavailableError: The registry does not answer.
    """
    if not database_exists(settings.mlflow_tracking_uri):
        return []
    # MLflow's own defaults try for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
        found = client.search_model_versions(f"name = '{settings.model_name}'")
    except MlflowException as error:
        raise RegistryUnavailableError(
            f"the MLflow registry at {settings.mlflow_tracking_uri} does not answer "
            f"({str(error).splitlines()[0]}); check MLFLOW_TRACKING_URI"
        ) from error
    return sorted(int(version.version) for version in found)


def database_exists(tracking_uri: str) -> bool:
    """False for a SQLite file that is not there: MLflow would create an empty one, seconds later."""
    path = tracking_uri.removeprefix("sqlite:///")
    return path == tracking_uri or Path(path).exists()


def choose_versions(settings: Settings, registered: list[int], asked: list[int]) -> list[int]:
    """The versions to serve, lowest first.

    Args:
        settings: For the model's name and registry.
        registered: What the registry has, oldest first.
        asked: What the caller wants; empty for the newest ones.

    Raises:
        ModelNotFoundError: One that was asked for does not exist, or there is none at all.
    """
    place = f"{settings.model_name} in {settings.mlflow_tracking_uri}"
    if not registered:
        raise ModelNotFoundError(f"there is no version of {place}; train one with `modelyard train`")
    missing = sorted(set(asked) - set(registered))
    if missing:
        raise ModelNotFoundError(
            f"there is no version {_listed(missing)} of {place}; it has {_listed(registered)}"
        )
    return sorted(set(asked)) or registered[-DEFAULT_COUNT:]


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions))
