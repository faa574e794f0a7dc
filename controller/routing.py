"""Chooses the queue of a request: a pure function of a pool snapshot and the request's selector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from app.contract import Contract, TensorContract
from app.errors import (
    ContradictionError,
    InputShapeError,
    NoCandidateError,
    ParameterError,
    UnknownModelError,
    UnknownWorkerError,
)
from app.nearest import nearest
from app.redis import keys
from app.worker_record import WorkerRecord, by_queue

POLICY = "highest_val_accuracy"
FORCED = "forced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model version with a ready worker; requests may be routed to it.

    Attributes:
        worker: Worker number.
        val_accuracy: Fraction in [0, 1], or None.
        live_workers: Ready workers of the queue.
        outputs: Outputs that its signature states; None if unknown.
        expected_wait_ms: Expected wait when the pool was last read, see `controller.admission.wait_estimate`.
    """

    queue: str
    worker: int
    model_name: str
    model_version: int
    val_accuracy: float | None
    contract: Contract
    live_workers: int
    expected_wait_ms: float
    outputs: Contract | None = None

    def rank(self) -> tuple[float, float, int]:
        """Sort key of the default policy: best quality, then shorter wait, then the newer version."""
        quality = -1.0 if self.val_accuracy is None else self.val_accuracy
        return (-quality, self.expected_wait_ms, -self.model_version)


@dataclass(frozen=True, slots=True)
class Selector:
    """The model, version or worker that a request names; None for each field that it leaves out.

    Attributes:
        model: Name of the model; `NAME@ALIAS` names a version as well.
        version: Number or alias of the version.
    """

    worker: int | None = None
    model: str | None = None
    version: int | str | None = None


class Route(msgspec.Struct, frozen=True):
    """The queue of a request and the rule that chose it."""

    candidate: Candidate
    policy: str
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pool at one moment.

    Attributes:
        candidates: Sorted by the default policy, best first.
        by_number: The same, by worker number.
        by_model: The same, by model name, best first.
        by_version: The same, by model name and version.
        one_contract: Whether all candidates take the same input.
        has_plain_tensors_alone: Whether each candidate's contract is a plain tensor.
        known: Model name and version of every worker number that was ever assigned.
        known_versions: The same, versions by model name.
        aliases: Version by alias, by the name of each model that has a live worker.
    """

    candidates: tuple[Candidate, ...] = ()
    by_number: Mapping[int, Candidate] = field(default_factory=dict)
    by_model: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    by_version: Mapping[tuple[str, int], Candidate] = field(default_factory=dict)
    one_contract: bool = True
    has_plain_tensors_alone: bool = True
    known: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    known_versions: Mapping[str, frozenset[int]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def build_snapshot(
    records: Iterable[WorkerRecord], numbers: Mapping[str, int], waits_ms: Mapping[str, float]
) -> Snapshot:
    """Build the snapshot from the records that the workers published.

    Args:
        records: Records of live workers in any state.
        numbers: Worker number by queue, for every queue that ever existed.
        waits_ms: Expected wait, by queue.
    """
    ready = by_queue(record for record in records if record.state == "ready")
    readings: dict[str, WorkerRecord] = {}  # by model: the record with the latest reading of its aliases
    for record in records:
        latest = readings.setdefault(record.model_name, record)
        if record.aliases_read_at_ms > latest.aliases_read_at_ms:
            readings[record.model_name] = record
    candidates = sorted(
        (_candidate(group, numbers, waits_ms.get(queue, 0.0)) for queue, group in ready.items()),
        key=Candidate.rank,
    )
    by_model: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.model_name, []).append(candidate)
    known = {number: keys.model_of(queue) for queue, number in numbers.items()}
    versions: dict[str, set[int]] = {}
    for name, version in known.values():
        versions.setdefault(name, set()).add(version)
    return Snapshot(
        candidates=tuple(candidates),
        by_number={candidate.worker: candidate for candidate in candidates},
        by_model={name: tuple(group) for name, group in by_model.items()},
        by_version={(each.model_name, each.model_version): each for each in candidates},
        one_contract=len({candidate.contract for candidate in candidates}) < 2,
        has_plain_tensors_alone=all(isinstance(each.contract, TensorContract) for each in candidates),
        known=known,
        known_versions={name: frozenset(each) for name, each in versions.items()},
        aliases={name: record.aliases for name, record in readings.items()},
    )


def route(snapshot: Snapshot, selector: Selector, fits: Callable[[TensorContract], bool]) -> Route:
    """Choose the queue among versions that take plain tensors.

    Args:
        fits: Whether the request's numbers form samples of a contract.

    Raises:
        UnknownWorkerError: No queue has the worker number.
        UnknownModelError: No queue serves the model or version.
        ContradictionError: The worker number belongs to another model or version.
        ParameterError: A version without a model, although several models are served.
        NoCandidateError: No selected version has a ready worker.
        InputShapeError: The numbers fit no candidate.
    """
    candidates, forced = _some_selected(snapshot, selector)
    for candidate in candidates:
        if isinstance(candidate.contract, TensorContract) and fits(candidate.contract):
            return _route(candidate, forced)
    contracts = dict.fromkeys(each.contract.describe() for each in candidates[:3])
    raise InputShapeError("the numbers do not fit the model; expected " + ", or ".join(contracts))


def candidate_routes(snapshot: Snapshot, selector: Selector) -> list[Route]:
    """The possible routes of the request, best first; at least one.

    Raises:
        NoCandidateError: No selected version has a ready worker.
        ModelyardError: The same selector errors as `route`.
    """
    candidates, forced = _some_selected(snapshot, selector)
    return [_route(candidate, forced) for candidate in candidates]


def foreseen(snapshot: Snapshot, selector: Selector) -> Route | None:
    """The route that `route` returns for every valid input; None if it depends on the input.

    Raises:
        ModelyardError: The same selector errors as `route`.
    """
    candidates, forced = _selected(snapshot, selector)
    if not candidates or (len(candidates) > 1 and not snapshot.one_contract):
        return None
    return _route(candidates[0], forced)


def _route(candidate: Candidate, forced: bool) -> Route:
    return Route(candidate, FORCED if forced else POLICY, forced)


def _some_selected(snapshot: Snapshot, selector: Selector) -> tuple[tuple[Candidate, ...], bool]:
    """The same as `_selected`, but at least one candidate.

    Raises:
        NoCandidateError: No candidate matches.
    """
    candidates, forced = _selected(snapshot, selector)
    if not candidates:
        raise NoCandidateError("no worker is ready for this request; try again shortly", retry_after_s=2)
    return candidates, forced


def _selected(snapshot: Snapshot, selector: Selector) -> tuple[tuple[Candidate, ...], bool]:
    """Candidates that match the selector, best first, and whether it names exactly one queue."""
    if selector.worker is not None:
        _check_worker(snapshot, selector, selector.worker)
        chosen = snapshot.by_number.get(selector.worker)
        return ((chosen,) if chosen else ()), True
    if selector.model is None and selector.version is None:
        return snapshot.candidates, False
    name, version = named_version(snapshot, selector)
    if version is None:
        return snapshot.by_model.get(name, ()), False
    chosen = snapshot.by_version.get((name, version))
    return ((chosen,) if chosen else ()), True


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


def _check_worker(snapshot: Snapshot, selector: Selector, worker: int) -> None:
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
    names = snapshot.by_model or snapshot.known_versions  # with no worker ready, those that were served
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
    known = ", ".join(map(str, sorted(versions)))
    if isinstance(version, int):
        if version not in versions:
            raise UnknownModelError(f"no worker serves version {version} of {name}; known versions: {known}")
        return version
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
            f"{name}@{version} is version {number}, which no worker serves; known versions: {known}"
        )
    others = nearest(version, aliases) or "none"
    raise UnknownModelError(f"{name} has no such alias; known aliases: {others}; known versions: {known}")


def _candidate(group: list[WorkerRecord], numbers: Mapping[str, int], wait_ms: float) -> Candidate:
    newest = group[0]
    return Candidate(
        queue=newest.queue,
        worker=numbers.get(newest.queue, newest.worker),
        model_name=newest.model_name,
        model_version=newest.model_version,
        val_accuracy=newest.val_accuracy,
        contract=newest.input,
        live_workers=len(group),
        expected_wait_ms=wait_ms,
        outputs=newest.outputs,
    )
