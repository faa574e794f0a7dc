"""Lists the versions that training has registered, quickly: MLflow is imported only where it must be."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import urlopen

from app.quality import quality_problem
from app.registry_database import examine, sqlite_path

CHAMPION = "champion"
_SEARCH_PATH = "/api/2.0/mlflow/model-versions/search"
_QUICK_TIMEOUT_S = 10.0
# Deleting a version leaves its row, in this stage.
_QUERY = """
SELECT v.version, v.run_id, arch.value, digest.value, accuracy.value, alias.alias IS NOT NULL
FROM model_versions v
LEFT JOIN runs run ON run.run_uuid = v.run_id AND run.lifecycle_stage = 'active'
LEFT JOIN params arch ON arch.run_uuid = v.run_id AND arch.key = 'arch'
LEFT JOIN params digest ON digest.run_uuid = v.run_id AND digest.key = 'dataset_digest'
LEFT JOIN latest_metrics accuracy
    ON accuracy.run_uuid = run.run_uuid AND accuracy.key = 'val_accuracy' AND NOT accuracy.is_nan
LEFT JOIN registered_model_aliases alias
    ON alias.name = v.name AND alias.version = v.version AND alias.alias = :champion
WHERE v.name = :name AND v.status = 'READY' AND v.current_stage != 'Deleted_Internal'
ORDER BY v.version
"""


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version and what its run says of it; None where the run was not one of training's.

    Attributes:
        version: The version number.
        run_id: The MLflow run that made it.
        arch: Its architecture.
        dataset_digest: Digest of the data set it was fitted to and measured on.
        val_accuracy: The final one, a fraction in [0, 1]; None, too, where the run was deleted.
        champion: Whether it has the alias `CHAMPION`.
    """

    version: int
    run_id: str | None
    arch: str | None
    dataset_digest: str | None
    val_accuracy: float | None
    champion: bool


def registered_versions(tracking_uri: str, model_name: str) -> list[RegisteredVersion]:
    """List a model's versions, oldest first; none if there is no such model or no database yet.

    Importing MLflow takes seconds, so an SQLite database is read as it lies. Anything else, a database
    laid out in another way included, is asked through MLflow.

    Raises:
        RegistrySchemaError: Its database has the schema of another MLflow.
        RegistryUnavailableError: The registry does not answer.
    """
    if examine(tracking_uri) in ("missing", "empty"):
        return []
    path = sqlite_path(tracking_uri)
    if path and not os.environ.get("MLFLOW_REGISTRY_URI"):
        try:
            return _read_sqlite(path, model_name)
        except sqlite3.Error:
            pass  # MLflow knows better, or says what is wrong
    from training.registry import ask_versions

    return ask_versions(tracking_uri, model_name)


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


def fraction(val_accuracy: float | None) -> float | None:
    """A quality, or None for what no worker would take for one."""
    return None if quality_problem(val_accuracy) else val_accuracy


def _read_sqlite(path: Path, model_name: str) -> list[RegisteredVersion]:
    """Read MLflow's tables, without writing to the file or creating it."""
    with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as database:
        rows = database.execute(_QUERY, {"name": model_name, "champion": CHAMPION}).fetchall()
    return [
        RegisteredVersion(version, run_id, arch, digest, fraction(accuracy), bool(champion))
        for version, run_id, arch, digest, accuracy, champion in rows
    ]
