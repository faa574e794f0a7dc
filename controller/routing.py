"""Chooses the queue of a request: a pure function of a pool snapshot and the request's selector.

Only the versions of one endpoint compete. `ranking` orders them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

import msgspec

from app import pool_file
from app.contract import Contract
from app.errors import (
    ContradictionError,
    EndpointRequiredError,
    ModelNotServedError,
    NoCandidateError,
    ParameterError,
    UnknownEndpointError,
    UnknownModelError,
    UnknownWorkerError,
)
from app.nearest import nearest
from app.quality import VAL_ACCURACY
from app.redis import keys
from app.registry_database import LATEST
from app.worker_record import WorkerRecord, by_queue
from controller.decisions import encode, explanation, forced_explanation, id_of, late_explanation
from controller.ranking import Candidate, ordered_sets
from modelyard.schemas import RouteExplanation

POLICY = "highest_val_accuracy"
BEST_METRIC = "best_metric"  # the same rule, for versions that another metric ranks
POLICY_OF: dict[pool_file.Policy, str] = {"best": "", "champion": "champion", "newest": "newest_version"}
FORCED = "forced"
CHAMPION = "champion"
DISABLED, RETIRED, PINNED, CIRCUIT_OPEN = (
    "disabled",
    "retired",
    "pinned",
    "circuit_open",
)  # reasons of exclusions
READINGS = (
    3  # of the pool that must agree before the best version is left, unless the wait is LATE_FACTOR too long
)
LATE_FACTOR = 1.2
IN_TIME = 0.8  # fraction of the time to its deadline within which a request must be expected to be answered


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why a queue is no candidate. Requests that name its version or worker still reach it, unless it is retired.

    Attributes:
        reason: Stable name, such as `disabled` or `circuit_open`.
        text: The reason in one sentence, for people.
    """

    reason: str
    text: str


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


class Route(msgspec.Struct, frozen=True):
    """The queue of a request and the rule that chose it.

    Attributes:
        degraded: Whether a better version was left because it would answer too late.
        comparable: Whether the figures that decided were measured on one declared data set; None if none decided.
        decision: Id of its explanation, see `controller.decisions`; empty if it is forced.
    """

    candidate: Candidate
    policy: str
    forced: bool
    degraded: bool = False
    comparable: bool | None = None
    decision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Versions that compete for the same requests.

    Attributes:
        candidates: Best first; those of one contract follow each other.
        routes: The route to the best candidate of each contract, best first.
        in_time_from_s: Shortest deadline that all of these are expected to meet; infinite without routes.
        excluded: Queues of the endpoint that are no candidates, and why.
        explanations: Of the routes, by decision.
        late: Routes of requests with short deadlines, by worker number; filled when they are first needed.
    """

    name: str
    candidates: tuple[Candidate, ...] = ()
    routes: tuple[Route, ...] = ()
    in_time_from_s: float = inf
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    explanations: dict[str, RouteExplanation] = field(default_factory=dict)
    late: dict[int, Route] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pool at one moment.

    Attributes:
        candidates: Versions with a ready worker, those of each endpoint best first; then the excluded ones.
        by_number: The same, by worker number.
        by_version: The same, by model name and version.
        by_model: The versions of each model that compete, as an endpoint.
        endpoints: Endpoints with a live worker, by name.
        default: The endpoint of requests that name none; None if there are several.
        excluded: Queues that are no candidates, and why.
        known: Model name and version of every worker number that was ever assigned.
        known_versions: The same, versions by model name.
        aliases: Version by alias, by the name of each model that has a live worker.
    """

    candidates: tuple[Candidate, ...] = ()
    by_number: Mapping[int, Candidate] = field(default_factory=dict)
    by_version: Mapping[tuple[str, int], Candidate] = field(default_factory=dict)
    by_model: Mapping[str, Endpoint] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    default: Endpoint | None = Endpoint(name="")
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    known: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    known_versions: Mapping[str, frozenset[int]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def explanations(self) -> Iterator[tuple[str, RouteExplanation]]:
        """Decisions of this snapshot, and why they were made."""
        for endpoint in (*self.endpoints.values(), *self.by_model.values()):
            yield from endpoint.explanations.items()

    def explain(self, route: Route) -> RouteExplanation:
        """Why a route of this snapshot leads to its version."""
        found = dict(self.explanations()).get(route.decision)
        own = route.candidate
        return found or forced_explanation(route.policy, own.worker, own.model_name, own.model_version)


def build_snapshot(
    records: Iterable[WorkerRecord],
    numbers: Mapping[str, int],
    waits_ms: Mapping[str, float],
    *,
    excluded: Mapping[str, Exclusion] | None = None,
    configured: Mapping[str, pool_file.Endpoint] | None = None,
    recent_models: Collection[str] = (),
    before: Snapshot | None = None,
) -> Snapshot:
    """Build the snapshot from the records that the workers published.

    Args:
        records: Records of live workers in any state.
        numbers: Worker number by queue, for every queue that ever existed.
        waits_ms: Expected wait, by queue.
        excluded: Queues that must not be candidates, and why.
        configured: Endpoints of the pool's file, by name. Every model that none of them names is one of its own.
        recent_models: Models that had a live worker until recently: requests without a selector do not fall to
            another model while the workers of theirs restart.
        before: The previous snapshot.
    """
    records, configured = list(records), configured or {}
    ready = by_queue(record for record in records if record.state == "ready")
    aliases = _all_aliases(records, ready)
    candidates = _candidates(ready, numbers, waits_ms, aliases, before)
    excluded = {**_pinned_elsewhere(candidates, configured), **(excluded or {})}
    competing: dict[str, list[Candidate]] = {name: [] for name in {*aliases, *recent_models}}
    for candidate in candidates:
        if candidate.queue not in excluded:
            competing[candidate.model_name].append(candidate)
    by_model = {
        name: _endpoint(name, group, _of_model(name, excluded)) for name, group in sorted(competing.items())
    }
    endpoints = _all_endpoints(by_model, configured, candidates, excluded)
    known = {number: keys.model_of(queue) for queue, number in numbers.items()}
    versions: dict[str, set[int]] = {}
    for name, version in known.values():
        versions.setdefault(name, set()).add(version)
    ranked = [each for endpoint in by_model.values() for each in endpoint.candidates]
    ranked += [each for each in candidates if each.queue in excluded]
    return Snapshot(
        candidates=tuple(ranked),
        by_number={candidate.worker: candidate for candidate in ranked},
        by_version={(each.model_name, each.model_version): each for each in ranked},
        by_model=by_model,
        endpoints=endpoints,
        default=_default(endpoints, configured),
        excluded=excluded,
        known=known,
        known_versions={name: frozenset(each) for name, each in versions.items()},
        aliases=aliases,
    )


def _all_aliases(
    records: Iterable[WorkerRecord], ready: Mapping[str, list[WorkerRecord]]
) -> dict[str, Mapping[str, int]]:
    """By model: its aliases, as the worker with the latest reading of them tells."""
    followers = [record for group in ready.values() for record in group if record.follows not in ("", LATEST)]
    readings: dict[str, WorkerRecord] = {}
    for record in records:
        latest = readings.setdefault(record.model_name, record)
        if record.aliases_read_at_ms > latest.aliases_read_at_ms:
            readings[record.model_name] = record
    return {name: _aliases(record, ready, followers) for name, record in readings.items()}


def _aliases(
    reading: WorkerRecord, ready: Mapping[str, list[WorkerRecord]], followers: list[WorkerRecord]
) -> dict[str, int]:
    """Version by alias; a followed alias stands for its follower's version until the one that it names is ready."""
    aliases = dict(reading.aliases)
    for record in followers:
        named = aliases.get(record.follows)
        is_served = named is not None and keys.queue_name(reading.model_name, named) in ready
        if record.model_name == reading.model_name and not is_served:
            aliases[record.follows] = record.model_version
    return aliases


def _candidates(
    ready: Mapping[str, list[WorkerRecord]],
    numbers: Mapping[str, int],
    waits_ms: Mapping[str, float],
    aliases: Mapping[str, Mapping[str, int]],
    before: Snapshot | None,
) -> list[Candidate]:
    answers_ms = {each.queue: each.answers_ms for each in before.candidates} if before else {}
    return [
        _candidate(
            group, numbers, waits_ms.get(queue, 0.0), answers_ms.get(queue, ()), aliases[group[0].model_name]
        )
        for queue, group in ready.items()
    ]


def _all_endpoints(
    by_model: Mapping[str, Endpoint],
    configured: Mapping[str, pool_file.Endpoint],
    candidates: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
) -> dict[str, Endpoint]:
    """The configured endpoints, and the models that none of them names."""
    endpoints = {
        name: _configured_endpoint(name, endpoint, candidates, excluded)
        for name, endpoint in configured.items()
    }
    named = {model for endpoint in configured.values() for model in _models(endpoint)} | endpoints.keys()
    return endpoints | {name: each for name, each in by_model.items() if name not in named}


def routes(snapshot: Snapshot, selector: Selector, deadline_s: float = inf) -> tuple[Route, ...]:
    """The possible routes of a request, best first, at least one: the input decides which of them it fits.

    Args:
        deadline_s: Time until the request's deadline.

    Raises:
        UnknownWorkerError: No queue has the worker number.
        UnknownModelError: No queue serves the model or version.
        UnknownEndpointError: There is no such endpoint.
        EndpointRequiredError: There are several endpoints, and the request names none.
        ContradictionError: The worker number belongs to another model or version.
        ParameterError: A version without a model, although several models are served.
        NoCandidateError: No selected version has a ready worker.
        ModelNotServedError: The version, or each of the model, was retired.
    """
    if selector.worker is not None:
        if selector.endpoint is not None:
            raise _endpoint_and_other()
        _check_worker(snapshot, selector, selector.worker)
        return _forced(snapshot, *snapshot.known[selector.worker])
    if selector.endpoint is not None:
        endpoint = _named_endpoint(snapshot, selector)
    elif selector.model is None and selector.version is None:
        if snapshot.default is None:
            raise _endpoint_required(snapshot)
        endpoint = snapshot.default
    else:
        name, version = named_version(snapshot, selector)
        if version is not None:
            return _forced(snapshot, name, version)
        endpoint = snapshot.by_model.get(name, Endpoint(name=name))
    if not endpoint.routes:
        raise _none_of(snapshot, endpoint)
    if deadline_s >= endpoint.in_time_from_s:
        return endpoint.routes
    return _in_time(endpoint, deadline_s)


def _forced(snapshot: Snapshot, name: str, version: int) -> tuple[Route, ...]:
    if snapshot.excluded and _is_retired(snapshot, name, version):
        raise ModelNotServedError(f"version {version} of {name} was retired; name another version, or none")
    candidate = snapshot.by_version.get((name, version))
    if candidate is None:
        raise _no_candidate()
    return (Route(candidate, FORCED, True),)


def _is_retired(snapshot: Snapshot, name: str, version: int) -> bool:
    found = snapshot.excluded.get(keys.queue_name(name, version))
    return found is not None and found.reason == RETIRED


def _none_of(snapshot: Snapshot, endpoint: Endpoint) -> NoCandidateError | ModelNotServedError:
    """Why an endpoint has no candidate."""
    versions = snapshot.known_versions.get(endpoint.name, frozenset())
    if versions and all(_is_retired(snapshot, endpoint.name, each) for each in versions):
        return ModelNotServedError(f"every version of {endpoint.name} was retired")
    ready = [
        f"version {each.model_version} is out of service ({endpoint.excluded[each.queue].text})"
        for each in snapshot.candidates
        if each.queue in endpoint.excluded
    ]
    if ready:
        return NoCandidateError(f"no version may answer this request: {'; '.join(ready)}", retry_after_s=2)
    return _no_candidate()


def _no_candidate() -> NoCandidateError:
    return NoCandidateError("no worker is ready for this request; try again shortly", retry_after_s=2)


def _endpoint_required(snapshot: Snapshot) -> EndpointRequiredError:
    names = ", ".join(snapshot.endpoints)
    return EndpointRequiredError(
        f"several endpoints are served, and the request names none; add ?endpoint=NAME with one of: {names}"
    )


def _endpoint_and_other() -> ContradictionError:
    return ContradictionError(
        "name either an endpoint, or a worker, model and version; leave one of them out"
    )


def _named_endpoint(snapshot: Snapshot, selector: Selector) -> Endpoint:
    name = selector.endpoint
    assert name is not None
    if (selector.model, selector.version) != (None, None):
        raise _endpoint_and_other()
    found = snapshot.endpoints.get(name) or snapshot.by_model.get(name)
    if found is None:
        names = nearest(name, snapshot.endpoints) or "none yet"
        raise UnknownEndpointError(f"there is no endpoint {name}; known endpoints: {names}")
    return found


def _endpoint(
    name: str,
    group: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
    order: pool_file.Policy = "best",
) -> Endpoint:
    """Rank the versions of an endpoint, and prepare their routes."""
    by_contract: dict[Contract, list[Candidate]] = {}
    for each in group:
        by_contract.setdefault(each.contract, []).append(each)
    ranked = sorted(
        ((ordered_sets(each, order), each) for each in by_contract.values()),
        key=lambda pair: _order(pair[0][0][0]),
    )
    explanations: dict[str, RouteExplanation] = {}
    prepared = [
        _explained_route(name, sets, rivals, excluded, explanations, order) for sets, rivals in ranked
    ]
    return Endpoint(
        name=name,
        candidates=tuple(each for sets, _ in ranked for tied in sets for each in tied),
        routes=tuple(prepared),
        in_time_from_s=max((_left_below_ms(each.candidate) for each in prepared), default=inf) / 1000,
        excluded=excluded,
        explanations=explanations,
    )


def _configured_endpoint(
    name: str,
    endpoint: pool_file.Endpoint,
    candidates: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
) -> Endpoint:
    own = [each for each in candidates if _belongs(endpoint, each.model_name, each.model_version)]
    if endpoint.default_version:
        own = [
            replace(each, is_champion=(each.model_name, each.model_version) == endpoint.default_version)
            for each in own
        ]
    return _endpoint(
        name,
        [each for each in own if each.queue not in excluded],
        {queue: why for queue, why in excluded.items() if _belongs(endpoint, *keys.model_of(queue))},
        endpoint.policy,
    )


def _pinned_elsewhere(
    candidates: Iterable[Candidate], configured: Mapping[str, pool_file.Endpoint]
) -> dict[str, Exclusion]:
    """Versions of a pinned endpoint, besides the one to which it is pinned."""
    return {
        each.queue: Exclusion("pinned", f"the endpoint {name} is pinned to {endpoint.pinned}")
        for name, endpoint in configured.items()
        for each in candidates
        if endpoint.pinned
        and _belongs(endpoint, each.model_name, each.model_version)
        and (each.model_name, each.model_version) != endpoint.pinned
    }


def _belongs(endpoint: pool_file.Endpoint, model: str, version: int) -> bool:
    return model in endpoint.models or (model, version) in endpoint.versions


def _models(endpoint: pool_file.Endpoint) -> set[str]:
    return {*endpoint.models, *(each.model for each in endpoint.versions)}


def _of_model(name: str, excluded: Mapping[str, Exclusion]) -> dict[str, Exclusion]:
    return {queue: why for queue, why in excluded.items() if keys.model_of(queue)[0] == name}


def _explained_route(
    name: str,
    sets: list[list[Candidate]],
    rivals: list[Candidate],
    excluded: Mapping[str, Exclusion],
    explanations: dict[str, RouteExplanation],
    order: pool_file.Policy,
) -> Route:
    comparable = comparability(rivals) if order == "best" else None
    reasons = {queue: (each.reason, each.text) for queue, each in excluded.items()}
    policy = POLICY_OF[order] or (POLICY if sets[0][0].metric == VAL_ACCURACY else BEST_METRIC)
    explained = explanation(name, policy, sets, reasons, comparable, order)
    decision = id_of(encode(explained))
    explanations[decision] = explained
    return Route(sets[0][0], policy, False, comparable=comparable, decision=decision)


def comparability(rivals: Iterable[Candidate]) -> bool | None:
    """Whether the figures of versions are of one metric and one declared data set; None if fewer than two have one."""
    measured = [each for each in rivals if each.figure is not None]
    scales = {(each.metric, each.direction, each.dataset_digest) for each in measured}
    return None if len(measured) < 2 else measured[0].dataset_digest != "" and len(scales) == 1


def _order(each: Candidate) -> tuple[bool, float, float, int]:
    quality = each.val_accuracy
    return (each.figure is None, -(quality or 0.0), each.expected_wait_ms, -each.model_version)


def _default(
    endpoints: Mapping[str, Endpoint], configured: Mapping[str, pool_file.Endpoint]
) -> Endpoint | None:
    for name, each in configured.items():
        if each.default:
            return endpoints[name]
    if not endpoints:
        return Endpoint(name="")
    return next(iter(endpoints.values())) if len(endpoints) == 1 else None


def _left_below_ms(each: Candidate) -> float:
    """The deadline, in ms, below which the best version is left."""
    lasting_ms = min(each.answers_ms) if len(each.answers_ms) == READINGS else 0.0
    return max(lasting_ms, each.answers_ms[0] / LATE_FACTOR) / IN_TIME


def _in_time(endpoint: Endpoint, deadline_s: float) -> tuple[Route, ...]:
    """The routes for a short deadline: of each contract the best version that is expected to answer in time.

    If none is, the one that is expected to answer first.
    """
    deadline_ms = deadline_s * 1000
    found = []
    for route in endpoint.routes:
        best = route.candidate
        if deadline_ms < _left_below_ms(best):
            rivals = [each for each in endpoint.candidates if each.contract == best.contract]
            in_time = (each for each in rivals[1:] if each.answers_ms[0] <= IN_TIME * deadline_ms)
            chosen = next(in_time, None) or min(rivals, key=lambda each: each.answers_ms[0])
            if chosen is not best:
                route = endpoint.late.get(chosen.worker) or _late_route(endpoint, route, chosen, rivals)
        found.append(route)
    return tuple(found)


def _late_route(endpoint: Endpoint, best: Route, chosen: Candidate, rivals: list[Candidate]) -> Route:
    explained = late_explanation(endpoint.explanations[best.decision], chosen, rivals)
    decision = id_of(encode(explained))
    endpoint.explanations[decision] = explained
    late = Route(chosen, best.policy, False, degraded=True, comparable=best.comparable, decision=decision)
    endpoint.late[chosen.worker] = late
    return late


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


def _candidate(
    group: list[WorkerRecord],
    numbers: Mapping[str, int],
    wait_ms: float,
    answers_ms: tuple[float, ...],
    aliases: Mapping[str, int],
) -> Candidate:
    newest = group[0]
    # The median: a version that gets no requests could not correct a percentile that one slow pass has raised.
    pass_ms = max((record.inference_ms.p50 or 0.0 for record in group), default=0.0)
    return Candidate(
        queue=newest.queue,
        worker=numbers.get(newest.queue, newest.worker),
        model_name=newest.model_name,
        model_version=newest.model_version,
        figure=newest.figure,
        metric=newest.metric,
        direction=newest.direction,
        contract=newest.input,
        live_workers=len(group),
        expected_wait_ms=wait_ms,
        outputs=newest.outputs,
        answers_ms=(wait_ms + pass_ms, *answers_ms)[:READINGS],
        is_champion=aliases.get(CHAMPION) == newest.model_version,
        source=newest.val_accuracy_source,
        dataset=newest.dataset,
        dataset_digest=newest.dataset_digest,
        dataset_rows=newest.dataset_rows,
    )
