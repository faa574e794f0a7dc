"""The pool at one moment, as routing sees it: built from the records of the workers at each reading of the pool."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from app import pool_file
from app.redis import keys
from app.registry_database import LATEST
from app.worker_record import WorkerRecord, ready_by_queue
from controller.decisions import forced_explanation
from controller.endpoints import (
    NO_VERSIONS,
    READINGS,
    Endpoint,
    Exclusion,
    Route,
    configured_endpoint,
    pinned_elsewhere,
    ranked_endpoint,
)
from controller.ranking import Candidate
from modelyard.schemas import RouteExplanation

GONE_TOGETHER_MS = (
    120_000.0  # versions of a model whose last workers went within this time were served together
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pool at one moment.

    Attributes:
        ready_versions: Versions with a ready worker: those that may be chosen, best first for each model, then the
            others.
        by_number: The same, by worker number.
        by_version: The same, by model name and version.
        cold: Versions without a ready worker for which requests may queue, by model name and version.
        by_model: The versions of each model that compete, as an endpoint; it follows the policy of the configured
            endpoint of the model, see `app.pool_file.endpoint_of_model`.
        endpoints: Endpoints with a live worker, by name.
        default: The endpoint of requests that name none; None if there are several.
        excluded: Queues that are no candidates, and why.
        known: Model name and version of every worker number that was ever assigned.
        known_versions: The same, versions by model name.
        aliases: Version by alias, by the name of each model that has a live worker or may be cold.
    """

    ready_versions: tuple[Candidate, ...] = ()
    by_number: Mapping[int, Candidate] = field(default_factory=dict)
    by_version: Mapping[tuple[str, int], Candidate] = field(default_factory=dict)
    cold: Mapping[tuple[str, int], Candidate] = field(default_factory=dict)
    by_model: Mapping[str, Endpoint] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    default: Endpoint | None = NO_VERSIONS
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
        return found or forced_explanation(
            route.policy, own.worker, own.model_name, own.model_version, cold=own.is_cold
        )


def build_snapshot(
    records: Iterable[WorkerRecord],
    numbers: Mapping[str, int],
    waits_ms: Mapping[str, float],
    *,
    excluded: Mapping[str, Exclusion] | None = None,
    configured: Mapping[str, pool_file.Endpoint] | None = None,
    recent_models: Collection[str] = (),
    last_records: Collection[WorkerRecord] = (),
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
        last_records: The last record of each version that may be cold.
        before: The previous snapshot.
    """
    records, configured = list(records), configured or {}
    ready = ready_by_queue(records)
    cold_records = _cold_records(last_records, ready, configured)
    aliases = _all_aliases([*records, *cold_records], ready)
    candidates = _candidates(ready, numbers, waits_ms, aliases, before)
    cold = _candidates({each.queue: [each] for each in cold_records}, numbers, waits_ms, aliases, None)
    candidates += [replace(each, live_workers=0) for each in cold]
    excluded = {**pinned_elsewhere(candidates, configured), **(excluded or {})}
    by_name: dict[str, list[Candidate]] = {name: [] for name in {*aliases, *recent_models}}
    for each in candidates:
        by_name[each.model_name].append(each)
    by_model = {
        name: _endpoint_of_model(name, configured, group, _of_model(name, excluded))
        for name, group in sorted(by_name.items())
    }
    endpoints = _all_endpoints(by_model, configured, candidates, excluded)
    known = {number: keys.model_of(queue) for queue, number in numbers.items()}
    versions: dict[str, set[int]] = {}
    for name, version in known.values():
        versions.setdefault(name, set()).add(version)
    ranked = [each for endpoint in by_model.values() for each in endpoint.candidates if not each.is_cold]
    in_service = {each.queue for each in ranked}
    ranked += [each for each in candidates if each.queue not in in_service and not each.is_cold]
    return Snapshot(
        ready_versions=tuple(ranked),
        by_number={candidate.worker: candidate for candidate in ranked},
        by_version={(each.model_name, each.model_version): each for each in ranked},
        cold={(each.model_name, each.model_version): each for each in candidates if each.is_cold},
        by_model=by_model,
        endpoints=endpoints,
        default=_default(endpoints, configured),
        excluded=excluded,
        known=known,
        known_versions={name: frozenset(each) for name, each in versions.items()},
        aliases=aliases,
    )


def _cold_records(
    last_records: Collection[WorkerRecord],
    ready: Mapping[str, list[WorkerRecord]],
    configured: Mapping[str, pool_file.Endpoint],
) -> list[WorkerRecord]:
    """Records of the versions in service that have no ready worker.

    In service are the versions that an endpoint lists, and those whose workers were there as long as any of their
    model: a version that another one has replaced is not waited for.
    """
    newest_at_ms: dict[str, float] = {}
    for each in last_records:
        before_ms = newest_at_ms.get(each.model_name, 0.0)
        newest_at_ms[each.model_name] = max(before_ms, each.heartbeat_at_ms)
    return [
        each
        for each in last_records
        if each.queue not in ready
        and (
            each.heartbeat_at_ms >= newest_at_ms[each.model_name] - GONE_TOGETHER_MS
            or pool_file.is_listed(configured, pool_file.NamedVersion(each.model_name, each.model_version))
        )
    ]


def _all_aliases(
    records: Iterable[WorkerRecord], ready: Mapping[str, list[WorkerRecord]]
) -> dict[str, Mapping[str, int]]:
    """By model: its aliases, as reported by the worker that read them last."""
    followers = [record for group in ready.values() for record in group if record.follows not in ("", LATEST)]
    latest: dict[str, WorkerRecord] = {}
    for record in records:
        if record.aliases_read_at_ms > latest.setdefault(record.model_name, record).aliases_read_at_ms:
            latest[record.model_name] = record
    return {name: _aliases(record, ready, followers) for name, record in latest.items()}


def _aliases(
    latest: WorkerRecord, ready: Mapping[str, list[WorkerRecord]], followers: list[WorkerRecord]
) -> dict[str, int]:
    """Version by alias; a followed alias stands for its follower's version until the one that it names is ready."""
    aliases = dict(latest.aliases)
    for record in followers:
        named = aliases.get(record.follows)
        is_served = named is not None and keys.queue_name(latest.model_name, named) in ready
        if record.model_name == latest.model_name and not is_served:
            aliases[record.follows] = record.model_version
    return aliases


def _candidates(
    ready: Mapping[str, list[WorkerRecord]],
    numbers: Mapping[str, int],
    waits_ms: Mapping[str, float],
    aliases: Mapping[str, Mapping[str, int]],
    before: Snapshot | None,
) -> list[Candidate]:
    answers_ms = {each.queue: each.answers_ms for each in before.ready_versions} if before else {}
    return [
        _candidate(
            group, numbers, waits_ms.get(queue, 0.0), answers_ms.get(queue, ()), aliases[group[0].model_name]
        )
        for queue, group in ready.items()
    ]


def _candidate(
    group: list[WorkerRecord],
    numbers: Mapping[str, int],
    wait_ms: float,
    answers_ms: tuple[float, ...],
    aliases: Mapping[str, int],
) -> Candidate:
    newest = group[0]
    passes_ms = [record.recent_pass_ms or record.inference_ms.p50 or 0.0 for record in group]
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
        answers_ms=(wait_ms + max(passes_ms), *answers_ms)[:READINGS],
        is_champion=aliases.get(pool_file.CHAMPION) == newest.model_version,
        source=newest.val_accuracy_source,
        dataset=newest.dataset,
        dataset_digest=newest.dataset_digest,
        dataset_rows=newest.dataset_rows,
        correct=newest.val_correct,
    )


def _all_endpoints(
    by_model: Mapping[str, Endpoint],
    configured: Mapping[str, pool_file.Endpoint],
    candidates: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
) -> dict[str, Endpoint]:
    """The configured endpoints, and the models that none of them names."""
    endpoints = {
        name: configured_endpoint(name, endpoint, candidates, excluded)
        for name, endpoint in configured.items()
    }
    named = {model for endpoint in configured.values() for model in endpoint.all_models} | endpoints.keys()
    return endpoints | {name: each for name, each in by_model.items() if name not in named}


def _endpoint_of_model(
    model: str,
    configured: Mapping[str, pool_file.Endpoint],
    own: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
) -> Endpoint:
    """The versions of a model that compete; by the policy of its configured endpoint, if it has one."""
    name = pool_file.endpoint_of_model(configured, model)
    if name:
        return configured_endpoint(name, configured[name], own, excluded)
    in_service = [each for each in own if each.queue not in excluded and not each.is_cold]
    return ranked_endpoint(model, in_service, excluded)


def _of_model(name: str, excluded: Mapping[str, Exclusion]) -> dict[str, Exclusion]:
    return {queue: why for queue, why in excluded.items() if keys.model_of(queue)[0] == name}


def _default(
    endpoints: Mapping[str, Endpoint], configured: Mapping[str, pool_file.Endpoint]
) -> Endpoint | None:
    if not endpoints:
        return NO_VERSIONS
    name = pool_file.default_endpoint(endpoints, configured)
    return endpoints[name] if name else None
