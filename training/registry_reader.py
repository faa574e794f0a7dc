"""Reads the versions, aliases and qualities of registered models, in a separate process that stays between questions.

Importing MLflow takes two seconds and 200 MiB. The process starts at the first question, and ends when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Self

import msgspec

from app.quality import VAL_ACCURACY, read_quality
from app.registry_database import examine
from app.server_errors import ModelyardError, RegistrySchemaError, RegistryUnavailableError
from training import inventory

GO_LAST = 10  # niceness: predictions go first


class ModelReading(msgspec.Struct, frozen=True):
    """A registered model, as the registry described it.

    Attributes:
        versions: Tags by version number; versions that are still being registered are left out.
        aliases: Version by alias.
        qualities: Value of the metric by version number, where it was asked for and there is one.
    """

    versions: dict[int, dict[str, str]] = {}
    aliases: dict[str, int] = {}
    qualities: dict[int, float] = {}


class Question(msgspec.Struct, frozen=True):
    """The models to read.

    Attributes:
        models: Their names; None for all of them.
        ranked: Names of the models whose qualities are needed; None for all of them.
        metrics: Their metrics, unless it is val_accuracy.
    """

    models: tuple[str, ...] | None
    ranked: tuple[str, ...] | None = ()
    metrics: dict[str, str] = {}


class Reading(msgspec.Struct, frozen=True, tag="reading"):
    """An answer of the registry.

    Attributes:
        models: The models that were asked for and exist, by name.
        names: The names of all registered models.
    """

    models: dict[str, ModelReading] = {}
    names: tuple[str, ...] = ()


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    code: str
    detail: str


class RegistryReader:
    """The process that reads a registry, seen from its caller. Not thread-safe, except `close`."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, question: Question) -> Reading:
        """Ask the registry. A database that does not exist yet has no models.

        Raises:
            RegistrySchemaError: Its database has the schema of another MLflow, and would be migrated.
            RegistryUnavailableError: The registry does not answer.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            if examine(self._uri) in ("missing", "empty"):
                return Reading()
            self._process = self._start()
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(msgspec.json.encode(question) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # ValueError: it was closed
            line = b""
        if not line:
            raise RegistryUnavailableError(
                f"the MLflow registry {self._uri} cannot be read: the process that tried ended with status "
                f"{process.wait()}, its log above; check MLFLOW_TRACKING_URI"
            )
        answer = msgspec.json.decode(line, type=Reading | _Refused)
        if isinstance(answer, _Refused):
            is_schema = answer.code == RegistrySchemaError.code
            raise (RegistrySchemaError if is_schema else RegistryUnavailableError)(answer.detail)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "training.registry_reader"],  # -P: a folder training may stand here
            env=os.environ | {"MLFLOW_TRACKING_URI": self._uri},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for its caller
        )


def main() -> None:
    """Answer one line of standard input after the other, until its end."""
    os.nice(GO_LAST)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries is no part of an answer
        for line in sys.stdin.buffer:
            answer: Reading | _Refused
            try:
                answer = _read(uri, msgspec.json.decode(line, type=Question))
            except ModelyardError as error:
                answer = _Refused(error.code, error.detail)
            output.write(msgspec.json.encode(answer) + b"\n")
            output.flush()


def _read(uri: str, question: Question) -> Reading:
    if examine(uri) in ("missing", "empty"):  # MLflow would create it
        raise RegistryUnavailableError(
            f"the MLflow registry {uri} no longer exists; check MLFLOW_TRACKING_URI"
        )
    client = inventory.connect(uri)
    with inventory.registry_errors(uri):
        registered = {
            each.name: each
            for each in inventory.all_pages(lambda token: client.search_registered_models(page_token=token))
        }
        wanted = registered if question.models is None else question.models
        models = {name: _model(client, registered[name], question) for name in wanted if name in registered}
    return Reading(models, tuple(registered))


def _model(client: Any, model: Any, question: Question) -> ModelReading:
    versions = inventory.ready_versions(client, model.name)
    qualities: Iterable[tuple[int, float | None]] = ()
    if question.ranked is None or model.name in question.ranked:
        metric = question.metrics.get(model.name, VAL_ACCURACY)
        registry = inventory.ReadInPages(client, versions)
        qualities = [(int(each.version), read_quality(registry, each, metric).value) for each in versions]
    return ModelReading(
        {int(each.version): {name: str(tag) for name, tag in each.tags.items()} for each in versions},
        {alias: int(version) for alias, version in model.aliases.items()},
        {version: value for version, value in qualities if value is not None},
    )


if __name__ == "__main__":
    main()
