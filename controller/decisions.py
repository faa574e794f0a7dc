"""Explains routing decisions: one document for all requests that one state of an endpoint routes.

A decision's id is a digest of its document, which holds nothing that changes from one reading of the pool to the
next. So a pool that stays the same makes no new ones, and all controllers give them the same ids.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import msgspec

from app.pool_file import Policy
from app.redis import keys
from controller.ranking import Candidate, best_of, deciding_criterion, mcnemar, tie_band
from modelyard.schemas import ExcludedVersion, RankedVersion, RouteExplanation

SHOWN = 20  # candidates, and excluded versions
WRITTEN_AGAIN_S = 60.0
ID_BYTES = 6
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RouteExplanation).decode
REASONS = {
    "only_candidate": "it is the only candidate",
    "val_accuracy": "it has the highest val_accuracy",
    "metric": "it has the best value of its metric",
    "champion": "the alias champion (or the endpoint's default) names it",
    "expected_wait": "the expected wait is the shortest",
    "newer_version": "it is the newest version",
}


def explanation(
    endpoint: str,
    policy: str,
    sets: Sequence[Sequence[Candidate]],
    excluded: Mapping[str, tuple[str, str]],
    comparable: bool | None,
    order: Policy = "best",
) -> RouteExplanation:
    """Explain the route to the best candidate.

    Args:
        sets: The candidates of one contract, see `controller.ranking.tie_sets`.
        excluded: Reason and text, by queue.
        order: The policy of the endpoint.
    """
    ranked = [each for tied in sets for each in tied]
    first, tied = ranked[0], sets[0]
    best = best_of(tied)
    others = [each for each in ranked if each is not best and each.figure is not None]
    criterion = deciding_criterion(sets, order)
    p = mcnemar(best, others[0]) if others else None
    has_band = p is None and others and best.figure is not None
    return RouteExplanation(
        endpoint=endpoint,
        worker=first.worker,
        model_name=first.model_name,
        model_version=first.model_version,
        input=first.contract.describe(),
        policy=policy,
        metric=first.metric,
        direction=first.direction,
        decided_by=criterion,
        why=_why(criterion, first, tied, comparable),
        comparable=comparable,
        cold=first.is_cold,
        tied=tuple(each.worker for each in tied[:SHOWN]),
        tie_band=round(tie_band(best, others[0]), 6) if has_band else None,
        tie_p=None if p is None else round(p, 6),
        candidates=tuple(map(_ranked, ranked[:SHOWN])),
        n_candidates=len(ranked),
        excluded=tuple(
            ExcludedVersion(*keys.model_of(queue), *why) for queue, why in list(excluded.items())[:SHOWN]
        ),
    )


def short_deadline_explanation(
    best: RouteExplanation, chosen: Candidate, rivals: Sequence[Candidate]
) -> RouteExplanation:
    """Explain why another version than the best was chosen for a short deadline."""
    answers_s = {each.worker: round(each.answers_ms[0] / 1000, 1) for each in rivals}
    return msgspec.structs.replace(
        best,
        worker=chosen.worker,
        model_name=chosen.model_name,
        model_version=chosen.model_version,
        decided_by="deadline",
        why=f"{best.model_name}/{best.model_version} is the best version, but it is expected to answer in "
        f"{answers_s[best.worker]:g} s, too late for the deadline of the request",
        degraded=True,
        cold=chosen.is_cold,
        candidates=tuple(
            msgspec.structs.replace(each, expected_answer_s=answers_s[each.worker])
            for each in best.candidates
        ),
    )


def forced_explanation(
    policy: str, worker: int, model_name: str, model_version: int, *, cold: bool = False
) -> RouteExplanation:
    """Explain a route that the request named, or one that is no longer known."""
    is_forced = policy == "forced"
    return RouteExplanation(
        endpoint=model_name,
        worker=worker,
        model_name=model_name,
        model_version=model_version,
        policy=policy,
        cold=cold,
        decided_by="request" if is_forced else "unknown",
        why="the request named this version or worker"
        if is_forced
        else "the decision was made by an older release, or is no longer kept",
    )


def id_of(document: bytes) -> str:
    """The id of a decision."""
    return blake2b(document, digest_size=ID_BYTES).hexdigest()


def decode(document: bytes) -> RouteExplanation:
    """Read a document.

    Raises:
        msgspec.MsgspecError: It is not one.
    """
    return _decode(document)


class DecisionWriter:
    """Decides which documents of a snapshot must be written to Redis, so that they outlive the jobs they routed.

    Args:
        kept_s: How long a job is readable after it was routed, at most.
    """

    def __init__(self, kept_s: float) -> None:
        self.lives_ms = int((kept_s + 2 * WRITTEN_AGAIN_S) * 1000)
        self._written_at_s: dict[str, float] = {}

    def forget(self) -> None:
        """Write all again, because Redis may have lost them."""
        self._written_at_s.clear()

    def due(self, explanations: Iterable[tuple[str, RouteExplanation]]) -> Iterator[tuple[str, bytes]]:
        """The documents to write now, of these decisions and their explanations."""
        now_s = time.monotonic()
        self._written_at_s = {
            name: at_s for name, at_s in self._written_at_s.items() if at_s > now_s - WRITTEN_AGAIN_S
        }
        for name, each in explanations:
            if name not in self._written_at_s:
                self._written_at_s[name] = now_s
                yield name, encode(each)


def _why(criterion: str, first: Candidate, tied: Sequence[Candidate], comparable: bool | None) -> str:
    reason = REASONS[criterion]
    if criterion == "metric":
        reason = f"it has the {first.direction.replace('er', 'est')} {first.metric}"
    if len(tied) > 1:
        reason = f"its {first.metric} is a tie with {len(tied) - 1} more, and of these {reason}"
        if first.figure is None:
            reason = f"no version has a {first.metric}, and of these {REASONS[criterion]}"
    if comparable is False:
        reason += "; the figures are of different metrics, or of different or undeclared data sets"
    return reason


def _ranked(each: Candidate) -> RankedVersion:
    return RankedVersion(
        worker=each.worker,
        model_name=each.model_name,
        model_version=each.model_version,
        val_accuracy=each.val_accuracy,
        metric=each.metric,
        metric_value=each.figure,
        val_accuracy_source=each.source,
        dataset=each.dataset,
        dataset_digest=each.dataset_digest,
        dataset_rows=each.dataset_rows,
        is_champion=each.is_champion,
    )
