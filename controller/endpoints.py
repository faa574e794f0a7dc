"""The endpoints of a pool: versions that compete for the same requests, ranked, with a route to each of the best.

Routes are prepared once per reading of the pool, so that a request only has to pick one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from operator import attrgetter

import msgspec

from app import pool_file
from app.contract import Contract
from app.quality import VAL_ACCURACY
from app.redis import keys
from controller.decisions import encode, explanation, id_of
from controller.ranking import Candidate, comparability, order_of_contract, ordered_sets
from modelyard.schemas import RouteExplanation

HIGHEST_VAL_ACCURACY = "highest_val_accuracy"
BEST_METRIC = "best_metric"  # the same rule, for versions that another metric ranks
POLICY_OF: dict[pool_file.Policy, str] = {"best": "", "champion": "champion", "newest": "newest_version"}
# Reasons of exclusions.
DISABLED = "disabled"
RETIRED = "retired"
PINNED = "pinned"
CIRCUIT_OPEN = "circuit_open"
READINGS = 3  # readings of the pool that must agree before the best version is passed over
AT_ONCE_FACTOR = 1.2  # at a wait that is this much too long, one reading is enough
IN_TIME = 0.8  # fraction of the time to its deadline within which a request must be expected to be answered


_is_cold = attrgetter("is_cold")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why a queue is not a candidate. Requests that name its version or worker still reach it, unless it is retired.

    Attributes:
        reason: Stable name, such as `disabled` or `circuit_open`.
        text: The reason in one sentence, for people.
    """

    reason: str
    text: str


class Route(msgspec.Struct, frozen=True):
    """The queue of a request and the rule that chose it.

    Attributes:
        degraded: Whether a better version was passed over because it would answer too late.
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
        candidates: Best first; those of one contract follow each other. Cold versions are among them only where no
            other takes the same input.
        routes: The route to the best candidate of each contract, best first.
        in_time_from_s: Shortest deadline that all of these are expected to meet; infinite without routes.
        excluded: Queues of the endpoint that are no candidates, and why.
        explanations: Of the routes, by decision.
        short_deadline_routes: Routes of requests with short deadlines, by worker number; filled when they are first
            needed.
    """

    name: str
    candidates: tuple[Candidate, ...] = ()
    routes: tuple[Route, ...] = ()
    in_time_from_s: float = inf
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    explanations: dict[str, RouteExplanation] = field(default_factory=dict)
    short_deadline_routes: dict[int, Route] = field(default_factory=dict)


NO_VERSIONS = Endpoint(name="")


def ranked_endpoint(
    name: str,
    group: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
    order: pool_file.Policy = "best",
) -> Endpoint:
    """Rank the versions of an endpoint, and prepare their routes."""
    by_contract: dict[Contract, list[Candidate]] = {}
    for each in sorted(group, key=_is_cold):
        rivals = by_contract.setdefault(each.contract, [])
        if not each.is_cold or not rivals or rivals[0].is_cold:
            rivals.append(each)
    ranked = sorted(
        ((ordered_sets(each, order), each) for each in by_contract.values()),
        key=lambda pair: order_of_contract(pair[0][0][0]),
    )
    explanations: dict[str, RouteExplanation] = {}
    prepared = [
        _explained_route(name, sets, rivals, excluded, explanations, order) for sets, rivals in ranked
    ]
    return Endpoint(
        name=name,
        candidates=tuple(each for sets, _ in ranked for tied in sets for each in tied),
        routes=tuple(prepared),
        in_time_from_s=max((passed_over_below_ms(each.candidate) for each in prepared), default=inf) / 1000,
        excluded=excluded,
        explanations=explanations,
    )


def configured_endpoint(
    name: str,
    endpoint: pool_file.Endpoint,
    candidates: Iterable[Candidate],
    excluded: Mapping[str, Exclusion],
) -> Endpoint:
    """An endpoint of the pool's file."""
    accepts = endpoint.cold == "accept"
    own = [
        each
        for each in candidates
        if endpoint.holds(each.model_name, each.model_version) and (accepts or not each.is_cold)
    ]
    if endpoint.default_version and any(each.model_name == endpoint.default_version.model for each in own):
        own = [
            replace(each, is_champion=(each.model_name, each.model_version) == endpoint.default_version)
            for each in own
        ]
    return ranked_endpoint(
        name,
        [each for each in own if each.queue not in excluded],
        {queue: why for queue, why in excluded.items() if endpoint.holds(*keys.model_of(queue))},
        endpoint.policy,
    )


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
    policy = POLICY_OF[order] or (HIGHEST_VAL_ACCURACY if sets[0][0].metric == VAL_ACCURACY else BEST_METRIC)
    explained = explanation(name, policy, sets, reasons, comparable, order)
    decision = id_of(encode(explained))
    explanations[decision] = explained
    return Route(sets[0][0], policy, False, comparable=comparable, decision=decision)


def pinned_elsewhere(
    candidates: Iterable[Candidate], configured: Mapping[str, pool_file.Endpoint]
) -> dict[str, Exclusion]:
    """Versions of a pinned endpoint, besides the one to which it is pinned."""
    return {
        each.queue: Exclusion(PINNED, f"the endpoint {name} is pinned to {endpoint.pinned}")
        for name, endpoint in configured.items()
        for each in candidates
        if endpoint.pinned
        and endpoint.holds(each.model_name, each.model_version)
        and (each.model_name, each.model_version) != endpoint.pinned
    }


def passed_over_below_ms(each: Candidate) -> float:
    """The deadline, in ms, below which a version is passed over."""
    lasting_ms = min(each.answers_ms) if len(each.answers_ms) == READINGS else 0.0
    return max(lasting_ms, each.answers_ms[0] / AT_ONCE_FACTOR) / IN_TIME
