"""Shows why a request goes to its version, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelyard.commands.console_output import UNKNOWN, Listing, figure_of, write_listing

if TYPE_CHECKING:
    from modelyard.schemas import RankedVersion, RouteExplanation

COLUMNS = ("rank", "worker", "version", "val_accuracy", "measured on", "rows", "expected answer", "")
NUMBERS = frozenset({"rank", "worker", "val_accuracy", "rows", "expected answer"})


def show_route(route: RouteExplanation) -> None:
    """Write the reason, the candidates with their figures, and the versions that were excluded."""
    click.echo(f"{route.model_name}/{route.model_version} (worker {route.worker}), because {route.why}.")
    facts = [f"endpoint {route.endpoint}", f"policy {route.policy}", f"decided by {route.decided_by}"]
    if route.tie_band == 0:
        facts.append("only equal figures are a tie")
    elif route.tie_band is not None:
        facts.append(f"differences up to {route.tie_band:.4f} are a tie")
    if route.tie_p is not None:
        facts.append(
            f"the two best figures differ with p = {route.tie_p:.3g} by McNemar's test, a tie from 0.05"
        )
    if route.comparable is False:
        facts.append("the figures cannot be compared")
    if route.degraded:
        facts.append("degraded")
    if route.cold:
        facts.append("cold: no worker is ready, and the job waits for one until its deadline")
    click.echo("; ".join(facts))
    if route.candidates:
        rows = [_row(route, rank, each) for rank, each in enumerate(route.candidates, 1)]
        marked = [place for place, row in enumerate(rows) if "chosen" in str(row[-1])]
        write_listing(Listing(COLUMNS, rows, NUMBERS, marked=marked))
    if route.n_candidates > len(route.candidates):
        click.echo(f"and {route.n_candidates - len(route.candidates)} more")
    for each in route.excluded:
        click.echo(f"excluded: {each.model_name}/{each.model_version} ({each.reason}): {each.why}")


def _row(route: RouteExplanation, rank: int, each: RankedVersion) -> list[object]:
    marks = {
        "chosen": each.worker == route.worker,
        "tied": len(route.tied) > 1 and each.worker in route.tied,
        "champion": each.is_champion,
    }
    dataset = " ".join(filter(None, [each.dataset, each.dataset_digest and f"({each.dataset_digest})"]))
    return [
        rank,
        each.worker,
        f"{each.model_name}/{each.model_version}",
        None if figure_of(each) == UNKNOWN else figure_of(each),
        dataset or "undeclared",
        each.dataset_rows or None,
        None if each.expected_answer_s is None else f"{each.expected_answer_s:g} s",
        ", ".join(name for name, holds in marks.items() if holds),
    ]
