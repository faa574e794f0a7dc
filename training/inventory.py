"""Reads the registry with MLflow's client: the versions registered by training, and their quality.

Importing MLflow takes two seconds and 200 MiB. Long-lived processes use a separate process: `registry_reader`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

from app.quality import LOGGED_MODEL, read_quality
from app.registry_database import examine
from app.server_errors import RegistryUnavailableError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
IDS_PER_PAGE = 500
_SEARCH_PATH = "/api/2.0/mlflow/model-versions/search"
_QUICK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version with data of its run; None if the run was not created by training.

    Attributes:
        version: The version number.
        run_id: The MLflow run that created it.
        arch: Its architecture.
        dataset_digest: Digest of its training and validation data set.
        val_accuracy: The final accuracy, a fraction in [0, 1]; also None if the run was deleted.
        champion: Whether it has the alias `CHAMPION`.
    """

    version: int
    run_id: str | None
    arch: str | None
    dataset_digest: str | None
    val_accuracy: float | None
    champion: bool


def connect(tracking_uri: str) -> MlflowClient:
    """Import MLflow without its console output, and configure this process for a registry.

    MLflow's usage telemetry is off unless ``MLFLOW_DISABLE_TELEMETRY`` is set. Requests to an unreachable server fail
    after seconds, not minutes, unless ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` is set.

    Raises:
        RegistrySchemaError: Its database has the schema of another MLflow, and would be migrated.
        RegistryUnavailableError: The URI is of no known kind.
    """
    for uri in (tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI", "")):
        examine(uri)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with registry_errors(tracking_uri):
        mlflow.set_tracking_uri(tracking_uri)
        return mlflow.MlflowClient(tracking_uri)


@contextlib.contextmanager
def registry_errors(tracking_uri: str) -> Iterator[None]:
    """Convert all errors of MLflow and its libraries into one error for callers.

    Raises:
        RegistryUnavailableError: A call failed; the error contains the reason.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        raise RegistryUnavailableError(
            f"the MLflow registry {tracking_uri} failed: {first_line(error)}; check MLFLOW_TRACKING_URI and "
            "that its server or database is running"
        ) from error


def registered_versions(tracking_uri: str, model_name: str) -> list[RegisteredVersion]:
    """List a model's versions, oldest first; none if there is no such model or no database yet.

    Raises:
        RegistrySchemaError: Its database has the schema of another MLflow.
        RegistryUnavailableError: The registry does not answer.
    """
    if examine(tracking_uri) in ("missing", "empty"):
        return []
    client = connect(tracking_uri)
    with registry_errors(tracking_uri):
        versions = ready_versions(client, model_name)
        models = client.search_registered_models(f"name = '{model_name}'") if versions else []
        champion = str(models[0].aliases.get(CHAMPION)) if models else None
        registry = ReadInPages(client, versions)
        found = [_described(registry, version, champion) for version in versions]
    return sorted(found, key=lambda version: version.version)


def ready_versions(client: MlflowClient, model_name: str) -> list[Any]:
    """The versions of a model that are completely registered."""
    pages = all_pages(lambda token: client.search_model_versions(f"name = '{model_name}'", page_token=token))
    return [version for version in pages if version.status == "READY"]


def all_pages(page: Callable[[str | None], Any]) -> list[Any]:
    """All results of an MLflow search.

    Args:
        page: Returns the search results from a page token on.
    """
    found = page(None)
    everything = list(found)
    while found.token:
        found = page(found.token)
        everything += found
    return everything


class ReadInPages:
    """Serves `read_quality` from a few searches: single calls for a thousand versions would be thousands of calls."""

    def __init__(self, client: MlflowClient, versions: Sequence[Any]) -> None:
        from mlflow.entities import ViewType

        self.get_model_version = client.get_model_version
        self.search_model_versions = client.search_model_versions
        self.get_metric_history = client.get_metric_history
        self._client = client
        experiments = all_pages(
            lambda token: client.search_experiments(view_type=ViewType.ALL, page_token=token)
        )
        experiment_ids = [each.experiment_id for each in experiments]
        run_ids = sorted({version.run_id for version in versions if version.run_id})
        self._runs = {
            run.info.run_id: run
            for ids in _batches(run_ids)
            for run in client.search_runs(
                experiment_ids, f"attributes.run_id IN ({ids})", ViewType.ALL, IDS_PER_PAGE
            )
        }
        sources = [LOGGED_MODEL.match(str(version.source)) for version in versions]
        model_ids = sorted({source[1] for source in sources if source})
        self._models = {
            model.model_id: model
            for ids in _batches(model_ids)
            for model in client.search_logged_models(
                experiment_ids, filter_string=f"model_id IN ({ids})", max_results=IDS_PER_PAGE
            )
        }

    def get_run(self, run_id: str) -> Any:
        """As MLflow's client."""
        return self._runs.get(run_id) or self._client.get_run(run_id)

    def get_logged_model(self, model_id: str) -> Any:
        """As MLflow's client."""
        return self._models.get(model_id) or self._client.get_logged_model(model_id)

    def params(self, run_id: str | None) -> dict[str, str]:
        """A run's parameters; empty if the run no longer exists."""
        run = self._runs.get(run_id)
        return dict(run.data.params) if run else {}


def _batches(ids: Sequence[str]) -> Iterator[str]:
    """Groups of ids in the syntax of MLflow's search filters."""
    pages = (ids[start : start + IDS_PER_PAGE] for start in range(0, len(ids), IDS_PER_PAGE))
    return (",".join(f"'{each}'" for each in some) for some in pages)


def _described(registry: ReadInPages, version: Any, champion: str | None) -> RegisteredVersion:
    """Join an MLflow version with its run."""
    params = registry.params(version.run_id)
    return RegisteredVersion(
        version=int(version.version),
        run_id=version.run_id or None,
        arch=params.get("arch"),
        dataset_digest=params.get("dataset_digest"),
        val_accuracy=read_quality(registry, version).value,
        champion=str(version.version) == champion,
    )


def quickly_known_archs(tracking_uri: str, model_name: str) -> set[str]:
    """Architectures that a model surely has a version of, asked of a tracking server without importing MLflow.

    What MLflow's client would do otherwise (a login, a registry elsewhere, more than a page) is left to it: the answer
    then may lack some.
    """
    special = [name for name in os.environ if name.startswith(("MLFLOW_TRACKING_", "MLFLOW_REGISTRY_"))]
    if not tracking_uri.startswith(("http://", "https://")) or set(special) - {"MLFLOW_TRACKING_URI"}:
        return set()
    escaped = model_name.replace("'", "''")
    query = urlencode({"filter": f"name='{escaped}'"})
    try:
        with urlopen(f"{tracking_uri.rstrip('/')}{_SEARCH_PATH}?{query}", timeout=_QUICK_TIMEOUT_S) as answer:  # noqa: S310
            versions = json.load(answer).get("model_versions", [])
        return {
            tag["value"]
            for version in versions
            if version["name"] == model_name and version["status"] == "READY"
            for tag in version.get("tags", [])
            if tag["key"] == "arch"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HTTPException):
        return set()  # MLflow's client says what is wrong


def best_version(versions: list[RegisteredVersion], dataset_digest: str) -> RegisteredVersion | None:
    """The version with the highest `val_accuracy` on a data set; of equals, the oldest."""
    measured = [(v.val_accuracy, -v.version, v) for v in versions if v.dataset_digest == dataset_digest]
    known = [(accuracy, age, v) for accuracy, age, v in measured if accuracy is not None]
    return max(known, key=lambda entry: entry[:2])[2] if known else None
