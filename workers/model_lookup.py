"""Looks up a model version in the MLflow registry in a separate process: `python -m workers.model_lookup`.

Importing MLflow takes 200 MiB and two seconds for one answer. The process ends after the answer, and the worker imports
PyTorch in the meantime. This module does not decide whether the version can be served.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from app.errors import (
    ModelNotFoundError,
    ModelWarmUpError,
    ModelyardError,
    RegistrySchemaError,
    RegistryUnavailableError,
    first_line,
)
from app.logs import configure_logging
from app.quality import LOGGED_MODEL, Quality, read_quality
from app.registry_database import examine, others_beside, sqlite_path

if TYPE_CHECKING:
    from app.settings import WorkerSettings

TASK = "modelyard.task"  # a version's tag, or an entry of its model's metadata
MISSING = "modelyard.missing"  # metadata: whether the model takes missing values, `allowed` or `refused`
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for an unknown alias
MOST_MODELS, NAMED = 1000, 8  # models that a not-found error considers and names
ERRORS = {
    each.code: each
    for each in (ModelNotFoundError, ModelWarmUpError, RegistrySchemaError, RegistryUnavailableError)
}


class ModelVersion(msgspec.Struct, frozen=True, tag="found"):
    """A registered model's version, as described by the registry.

    Attributes:
        path: Folder of its files on this machine.
        flavors: Flavors in its MLmodel file.
        signature: In the form that `workers.signature` reads.
        task: Its declared task, from its tag or metadata `modelyard.task`, such as `classification`.
        quality: Its `val_accuracy` and where that was logged.
        model_id: MLflow's id of the logged model, `m-…`; the digest of its files if it has neither that nor a run.
        place: Location of its files if they are in no registry, else empty.
    """

    name: str
    version: int
    run_id: str
    path: str
    flavors: dict[str, Any]
    signature: dict[str, Any] = {}
    quality: Quality = Quality()
    model_id: str = ""
    place: str = ""
    task: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Faults that do not prevent serving."""
        return self.quality.warnings

    @property
    def uri(self) -> str:
        """Its name for people."""
        return self.place or f"models:/{self.name}/{self.version}"


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An error that is sent to the worker and raised there."""

    code: str
    detail: str


@contextmanager
def looking_up(settings: WorkerSettings, folder: str) -> Iterator[Callable[[], ModelVersion]]:
    """Run `look_up` in a separate process, which ends with the context or with this process.

    Args:
        folder: Download folder for files that are not on this machine.

    Yields:
        A function that waits for the answer and returns it, or raises its error.
    """
    if sqlite_path(settings.mlflow_tracking_uri):  # others: checked in the look-up process
        _require_database(settings.mlflow_tracking_uri)
    wanted = {
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "MODEL_NAME": settings.model_name,
        "MODEL_VERSION": settings.model_version,
        "TMPDIR": folder,
    }
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "workers.model_lookup"],  # -P: a folder named workers may stand here
        env=os.environ | wanted,
        stdin=subprocess.PIPE,  # nothing is written; the open pipe shows that this process is alive
        stdout=subprocess.PIPE,
        start_new_session=True,  # only the worker must receive Ctrl-C
    ) as process:
        try:
            yield partial(_answer_of, process, settings.mlflow_tracking_uri)
        finally:
            process.kill()


def _answer_of(process: subprocess.Popen[bytes], tracking_uri: str) -> ModelVersion:
    assert process.stdout
    written = process.stdout.read()
    if not written:
        raise RegistryUnavailableError(
            f"the MLflow registry at {tracking_uri} cannot be read: the look-up process ended with status "
            f"{process.wait()}, see its log above; check MLFLOW_TRACKING_URI"
        )
    answer: ModelVersion | _Refused = msgspec.msgpack.decode(written, type=ModelVersion | _Refused)
    if isinstance(answer, _Refused):
        raise ERRORS[answer.code](answer.detail)
    return answer


def _require_database(uri: str) -> None:
    """Refuse a database that MLflow would create or migrate."""
    found = examine(uri)
    if found in ("missing", "empty"):
        what = "names a database that does not exist" if found == "missing" else "names an empty database"
        raise RegistryUnavailableError(
            f"MLFLOW_TRACKING_URI={uri} {what}{others_beside(uri)}; "
            "start in the folder of the database, or run `modelyard train` first"
        )


def main() -> None:
    """Look up the version named by the environment variables, and write the answer to standard output."""
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    configure_logging()
    wanted = [os.environ[name] for name in ("MLFLOW_TRACKING_URI", "MODEL_NAME", "MODEL_VERSION")]
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        # Output printed by libraries must not become part of the answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer: ModelVersion | _Refused
        try:
            answer = look_up(*wanted)
        except ModelyardError as error:
            answer = _Refused(error.code, error.detail)
        output.write(msgspec.msgpack.encode(answer))


def _end_with_the_worker() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns once the other end is closed, however the worker ended
    os._exit(1)


def look_up(tracking_uri: str, name: str, wanted: str) -> ModelVersion:
    """Find a version and its files on this machine; an alias or `latest` is resolved to its current number.

    Raises:
        ModelNotFoundError: The registry has no such model, version or alias.
        ModelWarmUpError: Its files are missing, or their description is unreadable.
        RegistrySchemaError: The registry's database has the schema of another MLflow release.
        RegistryUnavailableError: The registry does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for uri in (tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI", "")):
        _require_database(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        client = mlflow.MlflowClient()  # refuses a file store, unless told otherwise
    except MlflowException as error:
        raise RegistryUnavailableError(
            f"the MLflow registry at {tracking_uri} cannot be opened: {first_line(error)}"
        ) from error
    try:
        version = _find(client, name, wanted)
        quality = read_quality(client, version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            raise _not_found(client, tracking_uri, name, wanted) from None
        raise RegistryUnavailableError(
            f"the MLflow registry at {tracking_uri} does not answer "
            f"({first_line(error)}); check MLFLOW_TRACKING_URI"
        ) from error
    uri = f"models:/{name}/{version.version}"
    try:
        path = mlflow.artifacts.download_artifacts(uri)
        described = read_description(path)
    except Exception as error:
        raise ModelWarmUpError(f"{uri} cannot be loaded: {first_line(error)}") from error
    run_id, number = version.run_id or "", int(version.version)
    model_id = _model_id(version.source or "", run_id, Path(path))
    return ModelVersion(
        name,
        number,
        run_id,
        path,
        described.flavors,
        described.signature,
        quality,
        model_id,
        task=str(version.tags.get(TASK) or described.task),
    )


def _model_id(source: str, run_id: str, folder: Path) -> str:
    """MLflow 3's id of the model; for a version with neither that nor a run, the digest of its files."""
    found = LOGGED_MODEL.match(source)
    if found or run_id:
        return found[1] if found else ""
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _find(client: Any, name: str, wanted: str) -> Any:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    if wanted.isdigit():
        return client.get_model_version(name, wanted)
    if wanted != "latest":
        return client.get_model_version_by_alias(name, wanted)
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:  # the model does not exist, or all its versions were deleted
        raise MlflowException(f"{name} has no version", RESOURCE_DOES_NOT_EXIST)
    return max(versions, key=lambda each: int(each.version))


def _not_found(client: Any, tracking_uri: str, name: str, wanted: str) -> ModelNotFoundError:
    """The error for a missing version; it names existing ones."""
    versions = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
    models = [each.name for each in client.search_registered_models(max_results=MOST_MODELS)]
    if versions:
        last = versions[-NAMED:]
        known = f"it has version {'…, ' * (last != versions)}{', '.join(map(str, last))}"
        aliases = client.get_registered_model(name).aliases
        if not wanted.isdigit() and aliases:
            known += f"; its aliases, nearest first: {_nearest(wanted, aliases)}"
    elif name in models:
        known = "it has no version of that model"
    else:
        known = (
            f"its models, nearest first: {_nearest(name, models)}" if models else "it has no models at all"
        )
    return ModelNotFoundError(
        f"the registry at {tracking_uri} has no {name} / {wanted}: {known}{others_beside(tracking_uri)}; "
        "set MODEL_NAME and MODEL_VERSION to one that exists, or register it with `modelyard train`"
    )


def _nearest(wanted: str, names: Iterable[str]) -> str:
    """Names for a message, sorted by similarity to the wanted name."""

    def unlikeness(name: str) -> float:
        return -difflib.SequenceMatcher(None, wanted.casefold(), name.casefold()).ratio()

    ordered = sorted(names, key=unlikeness)
    return ", ".join(ordered[:NAMED]) + (", …" if len(ordered) > NAMED else "")


@dataclass(frozen=True, slots=True)
class Description:
    """The parts of an MLmodel file that Modelyard uses.

    Attributes:
        flavors: The flavors in which it can be loaded.
        signature: In the form that `workers.signature` reads.
        task: The task declared in its metadata; empty without one.
    """

    flavors: dict[str, Any]
    signature: dict[str, Any]
    task: str


def read_description(folder: str) -> Description:
    """Read the MLmodel file of a model."""
    from mlflow.models import Model

    described = Model.load(folder)
    metadata: dict[str, Any] = described.metadata or {}
    written = described.signature.to_dict() if described.signature else {}
    signature = {
        name: json.loads(written[name]) for name in ("inputs", "outputs", "params") if written.get(name)
    }
    if described.to_dict().get("is_signature_from_type_hint"):
        signature["is_own"] = True
    if MISSING in metadata:
        signature["allows_missing"] = metadata[MISSING] in (True, "allowed")
    return Description(described.flavors, signature, str(metadata.get(TASK) or ""))


if __name__ == "__main__":
    main()
