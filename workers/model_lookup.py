"""Looks up a model version in the MLflow registry in a separate process: `python -m workers.model_lookup`.

Importing MLflow takes 200 MiB and three seconds of a processor, most of the cost of the look-up. The process ends after
the answer, so that a worker does not keep MLflow. This module does not decide whether the version can be served.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from app.ledger.wire import Label
from app.logs import configure_logging
from app.nearest import NAMED, nearest
from app.quality import CORRECT, LOGGED_MODEL, VAL_ACCURACY, Quality, read_quality, with_correct_rows
from app.registry_database import LATEST, examine, others_beside
from app.server_errors import (
    ModelNotFoundError,
    ModelWarmUpError,
    ModelyardError,
    RegistrySchemaError,
    RegistryUnavailableError,
    first_line,
)
from workers.process import follower_files, fork_client

if TYPE_CHECKING:
    from app.settings import WorkerSettings

TASK = "modelyard.task"  # a version's tag, or an entry of its model's metadata
LABELS = "modelyard.labels"  # the same: names of the classes, a list or text with commas
IMAGE_SCALE = "modelyard.image_scale"  # a version's tag, or metadata: the value of a white pixel, 1 or 255
MISSING = "modelyard.missing"  # metadata: whether the model takes missing values, `allowed` or `refused`
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for an unknown alias
ALIASES_TIMEOUT_S = 60.0
MOST_MODELS = 1000  # models that a not-found error considers
ERRORS = {
    each.code: each
    for each in (ModelNotFoundError, ModelWarmUpError, RegistrySchemaError, RegistryUnavailableError)
}


class Aliases(msgspec.Struct, frozen=True, tag="aliases"):
    """All aliases of a model.

    Attributes:
        versions: Version by alias.
        newest: The model's newest version; 0 if the registry does not tell.
    """

    versions: dict[str, int] = {}
    newest: int = 0

    def version_of(self, alias: str) -> int | None:
        """The version of an alias or of `latest`; 0 if there is no such alias, None if the registry does not tell."""
        return self.newest or None if alias == LATEST else self.versions.get(alias, 0)


class ModelVersion(msgspec.Struct, frozen=True, tag="found"):
    """A registered model's version, as described by the registry.

    Attributes:
        path: Folder of its files on this machine.
        flavors: Flavors in its MLmodel file.
        signature: In the form that `workers.signature` reads.
        task: Its declared task, from its tag or metadata `modelyard.task`, such as `classification`.
        labels: Its declared class names, from its tag or metadata `modelyard.labels`, in the order of its scores.
        quality: Value of the metric that ranks it, and where that was logged.
        model_id: MLflow's id of the logged model, `m-…`; the digest of its files if it has neither that nor a run.
        place: Location of its files if they are in no registry, else empty.
        aliases: The model's aliases.
        read_at_s: When the registry answered, in seconds of this machine's monotonic clock.
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
    aliases: Aliases = Aliases()
    read_at_s: float = 0.0
    labels: list[Label] = []

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


_Answer: TypeAlias = ModelVersion | Aliases | _Refused


def read_version(settings: WorkerSettings, folder: str) -> ModelVersion:
    """Run `look_up` in a separate process, which ends with this process.

    Args:
        folder: Download folder for files that are not on this machine.

    Raises:
        ModelNotFoundError: The registry has no such model, version or alias.
        ModelWarmUpError: Its files are missing, or their description is unreadable.
        RegistrySchemaError: The registry's database has the schema of another MLflow release.
        RegistryUnavailableError: The registry does not answer.
    """
    command, wanted = _command(settings, "version")
    with subprocess.Popen(  # noqa: S603  (this Python)
        command,
        env=os.environ | wanted | {"TMPDIR": folder},
        stdin=subprocess.PIPE,  # nothing is written; the open pipe shows that this process is alive
        stdout=subprocess.PIPE,
        start_new_session=True,  # only the worker must receive Ctrl-C
    ) as process:
        try:
            answer = _answer_of(process, settings.mlflow_tracking_uri)
        finally:
            process.kill()
    assert isinstance(answer, ModelVersion)
    return answer


def read_aliases(settings: WorkerSettings) -> Aliases:
    """Run `look_up_aliases` in a separate process with a low priority.

    Raises:
        RegistrySchemaError: The registry's database has the schema of another MLflow release.
        RegistryUnavailableError: The registry does not answer in time.
    """
    command, wanted = _command(settings, "aliases")
    with subprocess.Popen(  # noqa: S603  (this Python)
        command,
        env=os.environ | wanted,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        end = threading.Timer(ALIASES_TIMEOUT_S, process.kill)
        end.start()
        try:
            answer = _answer_of(process, settings.mlflow_tracking_uri)
        finally:
            end.cancel()
            process.kill()
    assert isinstance(answer, Aliases)
    return answer


def _command(settings: WorkerSettings, what: str) -> tuple[list[str], dict[str, str]]:
    """The look-up process and its own environment variables."""
    return fork_client.command("workers.model_lookup", what), {
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "MODEL_NAME": settings.model_name,
        "MODEL_VERSION": settings.model_version,
        "MODELYARD_METRIC": settings.metric,
    }


def _answer_of(process: subprocess.Popen[bytes], tracking_uri: str) -> ModelVersion | Aliases:
    assert process.stdout
    written = process.stdout.read()
    if not written:
        raise RegistryUnavailableError(
            f"the MLflow registry at {tracking_uri} cannot be read: the look-up process ended with status "
            f"{process.wait()}, see its log above; check MLFLOW_TRACKING_URI"
        )
    answer: _Answer = msgspec.msgpack.decode(written, type=_Answer)
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
    """Look up the version of the environment variables, or its model's aliases; write the answer to standard output."""
    gc.disable()  # a tenth of the import of MLflow, in a process that ends at once
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    configure_logging()
    wanted = [os.environ[name] for name in ("MLFLOW_TRACKING_URI", "MODEL_NAME", "MODEL_VERSION")]
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        # Output printed by libraries must not become part of the answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer: _Answer
        try:
            if sys.argv[1:] == ["aliases"]:
                if not follower_files.own_folder():  # a follower waits for the answer
                    os.nice(10)  # predictions go first
                answer = look_up_aliases(*wanted[:2])
            else:
                answer = look_up(*wanted, metric=os.environ.get("MODELYARD_METRIC") or VAL_ACCURACY)
        except ModelyardError as error:
            answer = _Refused(error.code, error.detail)
        output.write(msgspec.msgpack.encode(answer))


def _end_with_the_worker() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns once the other end is closed, however the worker ended
    os._exit(1)


def look_up(tracking_uri: str, name: str, wanted: str, *, metric: str = VAL_ACCURACY) -> ModelVersion:
    """Find a version and its files on this machine; an alias or `latest` is resolved to its current number.

    Args:
        metric: The metric that ranks the version.

    Raises:
        ModelNotFoundError: The registry has no such model, version or alias.
        ModelWarmUpError: Its files are missing, or their description is unreadable.
        RegistrySchemaError: The registry's database has the schema of another MLflow release.
        RegistryUnavailableError: The registry does not answer.
    """
    client = _open(tracking_uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        version = _find(client, name, wanted)
        quality = read_quality(client, version, metric)
        aliases, read_at_s = _aliases(client, name), time.monotonic()
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            raise _not_found(client, tracking_uri, name, wanted) from None
        raise _silent(tracking_uri, error) from error
    uri = f"models:/{name}/{version.version}"
    try:
        path = mlflow.artifacts.download_artifacts(uri)
        described = read_description(path)
    except Exception as error:
        raise ModelWarmUpError(f"{uri} cannot be loaded: {first_line(error)}") from error
    if IMAGE_SCALE in version.tags:
        described.signature["image_scale"] = version.tags[IMAGE_SCALE]
    if metric == VAL_ACCURACY:
        quality = with_correct_rows(quality, str(version.tags.get(CORRECT) or described.correct))
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
        labels=_labels(version.tags.get(LABELS)) or described.labels,
        aliases=aliases,
        read_at_s=read_at_s,
    )


def look_up_aliases(tracking_uri: str, name: str) -> Aliases:
    """Read the aliases of a model.

    Raises:
        RegistrySchemaError: The registry's database has the schema of another MLflow release.
        RegistryUnavailableError: The registry does not answer.
    """
    client = _open(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        return _aliases(client, name)
    except MlflowException as error:
        raise _silent(tracking_uri, error) from error


def _open(tracking_uri: str) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for uri in (tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI", "")):
        _require_database(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    try:
        return mlflow.MlflowClient()  # refuses a file store, unless told otherwise
    except MlflowException as error:
        raise RegistryUnavailableError(
            f"the MLflow registry at {tracking_uri} cannot be opened: {first_line(error)}"
        ) from error


def _silent(tracking_uri: str, error: Exception) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"the MLflow registry at {tracking_uri} does not answer ({first_line(error)}); check MLFLOW_TRACKING_URI"
    )


def _aliases(client: Any, name: str) -> Aliases:
    model = client.get_registered_model(name)
    newest = max((int(each.version) for each in model.latest_versions or ()), default=0)
    return Aliases({alias: int(version) for alias, version in model.aliases.items()}, newest)


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
    if wanted != LATEST:
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
            known += f"; its aliases, nearest first: {nearest(wanted, aliases)}"
    elif name in models:
        known = "it has no version of that model"
    else:
        known = f"its models, nearest first: {nearest(name, models)}" if models else "it has no models at all"
    return ModelNotFoundError(
        f"the registry at {tracking_uri} has no {name} / {wanted}: {known}{others_beside(tracking_uri)}; "
        "set MODEL_NAME and MODEL_VERSION to one that exists, or register it with `modelyard train`"
    )


@dataclass(frozen=True, slots=True)
class Description:
    """The parts of an MLmodel file that Modelyard uses.

    Attributes:
        flavors: The flavors in which it can be loaded.
        signature: In the form that `workers.signature` reads.
        task: The task declared in its metadata; empty without one.
        labels: The class names declared in its metadata; empty without any.
        correct: The rows that it got right, as its metadata state them; empty if they do not.
    """

    flavors: dict[str, Any]
    signature: dict[str, Any]
    task: str
    labels: list[Label]
    correct: str


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
    if IMAGE_SCALE in metadata:
        signature["image_scale"] = metadata[IMAGE_SCALE]
    return Description(
        described.flavors,
        signature,
        task=str(metadata.get(TASK) or ""),
        labels=_labels(metadata.get(LABELS)),
        correct=str(metadata.get(CORRECT) or ""),
    )


def _labels(declared: Any) -> list[Label]:
    """Class names as a tag or metadata state them: a list, its JSON, or names with commas between them."""
    if isinstance(declared, str):
        try:
            declared = json.loads(declared)
        except ValueError:
            declared = [each.strip() for each in declared.split(",")]
    if not isinstance(declared, list):
        return []
    return [each if isinstance(each, str | int | float) else str(each) for each in declared]


if __name__ == "__main__":
    main()
