"""Chooses the queue of a request from a pool snapshot and the request's selector, without any I/O.

Only the versions of one endpoint compete. `ranking` orders them, and `endpoints` prepares their routes. The snapshot
is only read, apart from a cache of the routes for short deadlines.
"""

from __future__ import annotations

from math import inf

from app.nearest import nearest
from app.redis import keys
from app.server_errors import (
    ContradictionError,
    EndpointRequiredError,
    ModelNotServedError,
    NoCandidateError,
    UnknownEndpointError,
)
from controller.decisions import encode, id_of, short_deadline_explanation
from controller.endpoints import IN_TIME, RETIRED, Endpoint, Route, passed_over_below_ms
from controller.pool_snapshot import Snapshot
from controller.ranking import Candidate
from controller.selector import Selector, check_worker, named_version

FORCED = "forced"


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
        check_worker(snapshot, selector, selector.worker)
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
        endpoint = snapshot.by_model.get(name) or Endpoint(name=name)
        if not endpoint.routes:
            raise _none_of(snapshot, endpoint, name)
    if not endpoint.routes:
        raise _none_of(snapshot, endpoint, endpoint.name)
    if deadline_s >= endpoint.in_time_from_s:
        return endpoint.routes
    return _in_time(endpoint, deadline_s)


def _forced(snapshot: Snapshot, name: str, version: int) -> tuple[Route, ...]:
    if snapshot.excluded and _is_retired(snapshot, name, version):
        raise ModelNotServedError(f"version {version} of {name} was retired; name another version, or none")
    candidate = snapshot.by_version.get((name, version)) or snapshot.cold.get((name, version))
    if candidate is None:
        raise _no_candidate()
    return (Route(candidate, FORCED, True),)


def _is_retired(snapshot: Snapshot, name: str, version: int) -> bool:
    found = snapshot.excluded.get(keys.queue_name(name, version))
    return found is not None and found.reason == RETIRED


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


def _in_time(endpoint: Endpoint, deadline_s: float) -> tuple[Route, ...]:
    """The routes for a short deadline: of each contract the best version that is expected to answer in time.

    If none is, the one that is expected to answer first.
    """
    deadline_ms = deadline_s * 1000
    found = []
    for route in endpoint.routes:
        best = route.candidate
        if deadline_ms < passed_over_below_ms(best):
            rivals = [each for each in endpoint.candidates if each.contract == best.contract]
            in_time = (each for each in rivals[1:] if _expected_ms(each) <= IN_TIME * deadline_ms)
            chosen = next(in_time, None) or min(rivals, key=_expected_ms)
            if chosen is not best:
                route = _short_deadline_route(endpoint, route, chosen, rivals)
        found.append(route)
    return tuple(found)


def _expected_ms(candidate: Candidate) -> float:
    return candidate.answers_ms[0]


def _short_deadline_route(
    endpoint: Endpoint, best: Route, chosen: Candidate, rivals: list[Candidate]
) -> Route:
    found = endpoint.short_deadline_routes.get(chosen.worker)
    if found is not None:
        return found
    explained = short_deadline_explanation(endpoint.explanations[best.decision], chosen, rivals)
    decision = id_of(encode(explained))
    endpoint.explanations[decision] = explained
    found = Route(chosen, best.policy, False, degraded=True, comparable=best.comparable, decision=decision)
    endpoint.short_deadline_routes[chosen.worker] = found
    return found


def _none_of(snapshot: Snapshot, endpoint: Endpoint, model: str) -> NoCandidateError | ModelNotServedError:
    """Why an endpoint has no candidate; `model` is the model that the request names, or else the endpoint."""
    versions = snapshot.known_versions.get(model, frozenset())
    if versions and all(_is_retired(snapshot, model, each) for each in versions):
        return ModelNotServedError(f"every version of {model} was retired")
    ready = [
        f"version {each.model_version} is out of service ({endpoint.excluded[each.queue].text})"
        for each in snapshot.ready_versions
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
        "several endpoints are served, and the request names none; add ?endpoint=NAME, or --endpoint NAME to a "
        f"command, with one of: {names}"
    )


def _endpoint_and_other() -> ContradictionError:
    return ContradictionError(
        "name either an endpoint, or a worker, model and version; leave one of them out"
    )
