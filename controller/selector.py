"""The selector of a request: an endpoint, a model, a version by number or alias, or a worker. Looks up names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.nearest import nearest
from app.server_errors import (
    ContradictionError,
    NoCandidateError,
    ParameterError,
    UnknownModelError,
    UnknownWorkerError,
)
from controller.pool_snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Selector:
    """The endpoint, model, version or worker that a request names; None for each field that it leaves out.

    Attributes:
        model: Name of the model; `NAME@ALIAS` names a version as well.
        version: Number or alias of the version.
        endpoint: Name of the endpoint.
    """

    worker: int | None = None
    model: str | None = None
    version: int | str | None = None
    endpoint: str | None = None


def named_version(snapshot: Snapshot, selector: Selector) -> tuple[str, int | None]:
    """The model that a selector names, and the number of its version if it names one.

    Raises:
        UnknownModelError: No queue serves the model or version, or the model has no such alias.
        NoCandidateError: It names an alias, and no worker of the model is alive to tell its version.
        ParameterError: A version without a model, although several models are served.
        ContradictionError: It names two versions.
    """
    name = _only_model(snapshot) if selector.model is None else selector.model
    version = selector.version
    if name not in snapshot.known_versions:
        name, alias = _split(snapshot, name)
        if version not in (None, alias) and version != _number(snapshot, name, alias):
            raise ContradictionError(
                f"{name}@{alias} names a version already, and the request names another; leave one of them out"
            )
        version = alias
    if version is None:
        return name, None
    return name, _number(snapshot, name, version)


def check_worker(snapshot: Snapshot, selector: Selector, worker: int) -> None:
    """Check that a worker number is known, and that the rest of its selector says the same.

    Raises:
        UnknownWorkerError: No queue has the worker number.
        ContradictionError: It belongs to another model or version.
    """
    if worker not in snapshot.known:
        known = ", ".join(map(str, sorted(snapshot.known))) or "none yet"
        raise UnknownWorkerError(f"no worker has the number {worker}; known numbers: {known}")
    name, version = snapshot.known[worker]
    if selector.model in (None, name) and selector.version in (None, version):
        return
    model = name if selector.model is None else selector.model
    has_alias = isinstance(selector.version, str) or "@" in model
    if not has_alias or named_version(snapshot, Selector(None, model, selector.version)) != (name, version):
        raise ContradictionError(
            f"worker {worker} serves {name} / {version}, not the model or version asked for; leave one of them out"
        )


def _only_model(snapshot: Snapshot) -> str:
    names = snapshot.by_model or snapshot.known_versions  # with no worker alive, those that were served
    if len(names) != 1:
        raise ParameterError("version needs model beside it, as several models (or none) are served")
    return next(iter(names))


def _split(snapshot: Snapshot, name: str) -> tuple[str, str]:
    """Model and alias of `NAME@ALIAS`.

    Raises:
        UnknownModelError: No queue serves the model.
    """
    model, _, alias = name.rpartition("@")
    if model not in snapshot.known_versions:
        names = nearest(model or name, snapshot.known_versions) or "none yet"
        raise UnknownModelError(f"no worker serves this model; known models: {names}")
    return model, alias


def _number(snapshot: Snapshot, name: str, version: int | str) -> int:
    """The number of a known model's version, which is served or was."""
    versions = snapshot.known_versions[name]
    if isinstance(version, int):
        if version in versions:
            return version
        raise UnknownModelError(f"no worker serves version {version} of {name}; {_known(versions)}")
    aliases = snapshot.aliases.get(name)
    if aliases is None:
        raise NoCandidateError(
            f"no worker of {name} is alive to tell the version of an alias; try again shortly",
            retry_after_s=2,
        )
    number = aliases.get(version)
    if number in versions:
        return number
    if number is not None:
        raise UnknownModelError(
            f"{name}@{version} is version {number}, which no worker serves; {_known(versions)}"
        )
    others = nearest(version, aliases) or "none"
    raise UnknownModelError(f"{name} has no such alias; known aliases: {others}; {_known(versions)}")


def _known(versions: Iterable[int]) -> str:
    return f"known versions: {', '.join(map(str, sorted(versions)))}"
