"""Chooses the model versions that a pool serves: the requested ones, or the newest registered ones."""

from __future__ import annotations

import subprocess

from app.errors import ModelNotFoundError, ServiceError
from app.registry_database import others_beside
from app.settings import Settings, WorkerSettings, load
from cli.local_pool.programs import MODELYARD

DEFAULT_COUNT = 2


def choose_versions(settings: Settings, asked: list[int]) -> list[int]:
    """The versions to serve, lowest first.

    Args:
        settings: Contain the model's name and registry.
        asked: Requested versions; empty for the two newest, or the only one.

    Raises:
        ModelNotFoundError: A requested version does not exist, or there is no version at all.
        RegistryUnavailableError: The registry does not answer.
    """
    registered = registered_numbers(settings)
    place = f"{settings.model_name} in {settings.shown_registry}{others_beside(settings.mlflow_tracking_uri)}"
    if not registered:
        raise ModelNotFoundError(f"there is no version of {place}; train one with `modelyard train`")
    missing = sorted(set(asked) - set(registered))
    if missing:
        raise ModelNotFoundError(
            f"there is no version {_listed(missing)} of {place}; it has {_listed(registered)}"
        )
    return sorted(set(asked)) or registered[-DEFAULT_COUNT:]


def prepare_environments(versions: list[int]) -> None:
    """Build the environments of versions that have separate ones, so that their workers start immediately.

    Raises:
        ServiceError: One cannot be built; the reason is on standard error.
    """
    if load(WorkerSettings).env_manager == "local":
        return
    for version in versions:
        command = [*MODELYARD, "worker", "--prepare", "--model-version", str(version)]
        if subprocess.run(command, check=False).returncode:  # noqa: S603  (our own interpreter)
            raise ServiceError(f"version {version} cannot be served in an environment of its own; see above")


def registered_numbers(settings: Settings) -> list[int]:
    """Numbers of the registered versions of the settings' model, oldest first."""
    from training.inventory import version_numbers

    return version_numbers(settings.mlflow_tracking_uri, settings.model_name)


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions))
