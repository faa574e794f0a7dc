"""Ranks versions by measured quality: which figures can be compared, and which of them are a tie. Pure functions.

A version's figure is the value of the metric that ranks it. Figures of different metrics are never compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, inf, sqrt

from app.contract import Contract
from app.pool_file import Policy
from app.quality import VAL_ACCURACY, Direction

Z = 1.96  # two-sided 95 %
SIGNIFICANT = 0.05  # a difference that is less likely by chance is no tie
LEAST_BAND = 0.002  # two figures of one data set that differ by less are a tie, however large the data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model version to which requests may be routed: it has a ready worker, or requests may queue for one.

    Attributes:
        worker: Worker number.
        figure: Value of its metric, of val_accuracy a fraction in [0, 1]; None without one.
        metric: The metric that ranks it.
        direction: Which value of that metric is better.
        live_workers: Ready workers of the queue; 0 of a cold version.
        outputs: Outputs that its signature states; None if unknown.
        expected_wait_ms: Expected wait when the pool was last read, see `controller.admission.wait_estimate`.
        answers_ms: Expected time to an answer (wait and forward pass) at the last readings of the pool, newest first.
        is_champion: Whether the alias `champion` names it.
        source: Where the figure was logged, see `app.quality`.
        dataset: Name of the data set of the figure, or empty.
        dataset_digest: Digest of that data set, empty if it was not declared.
        dataset_rows: Its number of rows; 0 if unknown.
        correct: Which rows the version got right, see `app.quality.packed_rows`; empty if unknown.
    """

    queue: str
    worker: int
    model_name: str
    model_version: int
    figure: float | None
    contract: Contract
    live_workers: int
    expected_wait_ms: float
    outputs: Contract | None = None
    answers_ms: tuple[float, ...] = (0.0,)
    is_champion: bool = False
    metric: str = VAL_ACCURACY
    direction: Direction = "higher"
    source: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    dataset_rows: int = 0
    correct: str = ""

    @property
    def is_cold(self) -> bool:
        """Whether it has no ready worker."""
        return self.live_workers == 0

    @property
    def val_accuracy(self) -> float | None:
        """The figure, if val_accuracy ranks the version."""
        return self.figure if self.metric == VAL_ACCURACY else None


def comparability(rivals: Iterable[Candidate]) -> bool | None:
    """Whether the figures of versions are of one metric and one declared data set; None if fewer than two have one."""
    measured = [each for each in rivals if each.figure is not None]
    scales = {(*_scale(each), each.dataset_digest) for each in measured}
    return None if len(measured) < 2 else measured[0].dataset_digest != "" and len(scales) == 1


def order_of_contract(best: Candidate) -> tuple[bool, bool, float, float, int]:
    """Sorts the contracts of an endpoint by the best candidate of each; those of cold versions are the last."""
    return (
        best.is_cold,
        best.figure is None,
        -(best.val_accuracy or 0.0),
        best.expected_wait_ms,
        -best.model_version,
    )


def half_width(p: float, n: int) -> float:
    """Half of the width of the Wilson 95 % interval of a fraction `p` that was measured on `n` samples."""
    return Z * sqrt(p * (1 - p) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)


def tie_band(best: Candidate, other: Candidate) -> float:
    """The largest difference between two figures that is a tie.

    For figures of one declared data set it is the half-width of the difference (Newcombe's square-and-add of two
    Wilson intervals). It is known for proportions only: figures of another metric, or without the number of rows,
    tie if they are equal.
    """
    rows = min(best.dataset_rows, other.dataset_rows)
    if not rows or best.metric != VAL_ACCURACY or not are_comparable(best, other):
        return 0.0
    return max(LEAST_BAND, hypot(half_width(_value(best), rows), half_width(_value(other), rows)))


def mcnemar(best: Candidate, other: Candidate) -> float | None:
    """The p-value of McNemar's exact two-sided test: how likely such a difference is between equal versions.

    None unless both say which rows of one declared data set they got right.
    """
    if not (best.correct and other.correct and are_comparable(best, other)):
        return None
    return _mcnemar(best.correct, other.correct)


@lru_cache(maxsize=256)  # the same at each reading of the pool
def _mcnemar(best: str, other: str) -> float | None:
    one, two = int(best, 16), int(other, 16)
    if one.bit_length() != two.bit_length():
        return None
    n, fewer = (one ^ two).bit_count(), min((one & ~two).bit_count(), (two & ~one).bit_count())
    n_ways = term = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        n_ways += term
    return min(1.0, n_ways / (1 << max(n - 1, 0)))


def is_tie(best: Candidate, other: Candidate) -> bool:
    """Whether chance may explain why the figure of the best is better."""
    p = mcnemar(best, other)
    return _value(best) - _value(other) <= tie_band(best, other) if p is None else p >= SIGNIFICANT


def are_comparable(one: Candidate, other: Candidate) -> bool:
    """Whether both figures are of one metric, and were measured on one declared data set."""
    return _scale(one) == _scale(other) and one.dataset_digest == other.dataset_digest != ""


def tie_sets(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """The candidates of one contract in sets of equals, best first; those without a figure form the last set.

    Sets of different data sets cannot be compared. They are nevertheless ranked by their best values, but the alias
    `champion` comes before a value of another declared data set. Values of different metrics are not even ranked: the
    metric of the champion comes first, or else that of the newest version.
    """
    by_scale: dict[tuple[str, str], list[Candidate]] = {}
    unmeasured = []
    for each in candidates:
        if each.figure is None:
            unmeasured.append(each)
        else:
            by_scale.setdefault(_scale(each), []).append(each)
    metrics = sorted(map(_sets_of_one_metric, by_scale.values()), key=_order_of_metric)
    sets = [tied for of_metric in metrics for tied in of_metric]
    return [*sets, sorted(unmeasured, key=_order_in_tie)] if unmeasured else sets


def ordered_sets(candidates: Iterable[Candidate], policy: Policy) -> list[list[Candidate]]:
    """The candidates of one contract by the policy of their endpoint, in sets as `tie_sets` has."""
    if policy == "newest":
        return [
            [each] for each in sorted(candidates, key=lambda each: (-each.model_version, each.model_name))
        ]
    sets = tie_sets(candidates)
    champion = next((each for tied in sets for each in tied if each.is_champion), None)
    if policy == "best" or champion is None:
        return sets
    others = [[each for each in tied if each is not champion] for tied in sets]
    return [[champion], *(tied for tied in others if tied)]


def _sets_of_one_metric(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    by_digest: dict[str, list[Candidate]] = {}
    for each in candidates:
        by_digest.setdefault(each.dataset_digest, []).append(each)
    sets: list[list[Candidate]] = []
    promoted: list[Candidate] = []
    for digest, group in by_digest.items():
        own = _sets_of_equals(sorted(group, key=_order_by_value))
        sets += own
        if digest and own[0][0].is_champion:
            promoted = own[0]
    sets.sort(key=lambda tied: min(map(_order_by_value, tied)))
    if promoted and sets[0][0].dataset_digest:
        sets = [promoted, *(each for each in sets if each is not promoted)]
    return sets


def _order_of_metric(sets: list[list[Candidate]]) -> tuple[bool, int, str]:
    newest = max(each.model_version for tied in sets for each in tied)
    return not sets[0][0].is_champion, -newest, sets[0][0].metric


def deciding_criterion(sets: Sequence[Sequence[Candidate]], policy: Policy = "best") -> str:
    """The criterion that put the first of the candidates before the others: one of `modelyard.schemas.CRITERIA`.

    Args:
        sets: Result of `ordered_sets`.
    """
    first = sets[0][0]
    if len(sets) > 1 and policy == "newest":
        return "newer_version"
    if len(sets) > 1 and policy == "champion" and first.is_champion:
        return "champion"
    if len(sets[0]) == 1:
        if len(sets) == 1:
            return "only_candidate"
        second = sets[1][0]
        if second.figure is not None and _scale(first) != _scale(second):
            return "champion" if first.is_champion else "newer_version"
        if first.is_champion and _value(first) < _value(second):
            return "champion"
        return _by_figure(first)
    second = sets[0][1]
    if first.is_champion:
        return "champion"
    if first.expected_wait_ms != second.expected_wait_ms:
        return "expected_wait"
    return _by_figure(first) if first.figure != second.figure else "newer_version"


def _by_figure(first: Candidate) -> str:
    return "val_accuracy" if first.metric == VAL_ACCURACY else "metric"


def best_of(tied: Iterable[Candidate]) -> Candidate:
    """The one with the best figure, of candidates of one metric."""
    return max(tied, key=_value)


def _sets_of_equals(group: list[Candidate]) -> list[list[Candidate]]:
    """The measured candidates of one data set, sorted by value, in sets that are ties with their best."""
    sets: list[list[Candidate]] = []
    best = None
    for each in group:
        if best is None or not is_tie(best, each):
            best = each
            sets.append([])
        sets[-1].append(each)
    return [sorted(tied, key=_order_in_tie) for tied in sets]


def _value(each: Candidate) -> float:
    """The figure, so that a higher value is better."""
    if each.figure is None:
        return -inf
    return each.figure if each.direction == "higher" else -each.figure


def _scale(each: Candidate) -> tuple[str, str]:
    return each.metric, each.direction


def _order_by_value(each: Candidate) -> tuple[float, float, str, int]:
    return (-_value(each), each.expected_wait_ms, each.model_name, -each.model_version)


def _order_in_tie(each: Candidate) -> tuple[bool, float, float, str, int]:
    return (not each.is_champion, each.expected_wait_ms, -_value(each), each.model_name, -each.model_version)
