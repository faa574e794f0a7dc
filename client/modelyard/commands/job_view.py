"""Shows a job to people: which version answered, how long it took, and what it answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelyard.commands.console_output import Listing, figure_of, is_terminal, write_listing
from modelyard.redaction import redacted

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from modelyard import Job
    from modelyard.commands.given_samples import Sample

    Fact: TypeAlias = tuple[str, str | Text]

MOST_ROWS = 20


def show_job(job: Job, url: str, sample: Sample | None = None, latency_ms: float | None = None) -> None:
    """Show a job, with the digit that was sent beside it.

    Args:
        url: URL of the controller.
        sample: What was sent, if it is known.
        latency_ms: Time that the caller waited, if it did.
    """
    from rich.console import Console

    digit = sample.digit if sample else None
    facts = _facts(job, sample, latency_ms)
    if digit is not None or is_terminal():
        Console().print(_view(digit, facts))
    else:  # a console without a terminal would cut lines
        click.echo("\n".join(f"{name}: {fact}" for name, fact in facts))
    if job.done and digit is None:
        _show_outputs(job)
    if not job.done:
        click.echo(redacted(f"result: {url.rstrip('/')}/results/{job.id}"))  # in one piece, to be copied


def _show_outputs(job: Job) -> None:
    """The outputs as a table where there is a row for each row, and as JSON otherwise."""
    import msgspec

    from modelyard.batch.output_columns import output_columns
    from modelyard.client_errors import OutputsNotJoinableError

    n_rows = _n_rows(job)
    try:
        columns = output_columns(job, n_rows)
    except OutputsNotJoinableError:
        columns, n_rows = {"outputs": [job.outputs]}, 1
    rows = [*zip(*[values[:MOST_ROWS] for values in columns.values()], strict=True)]
    if columns and len(columns) <= MOST_ROWS:
        write_listing(Listing([*columns], [list(map(_cell, row)) for row in rows]))
    elif columns:
        click.echo(msgspec.json.encode([dict(zip(columns, row, strict=True)) for row in rows]))
    if n_rows > MOST_ROWS:
        click.echo(f"{MOST_ROWS} of {n_rows} rows; --json writes all of them")


def _n_rows(job: Job) -> int:
    if job.predictions:
        return len(job.predictions)
    values = list(job.outputs.values()) if isinstance(job.outputs, dict) else [job.outputs]
    return max([len(each) for each in values if isinstance(each, list)], default=1)


def _cell(value: Any) -> str | None:
    import msgspec

    if value is None or isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else msgspec.json.encode(value).decode()


def _facts(job: Job, sample: Sample | None, latency_ms: float | None) -> list[Fact]:
    """The description of a job, line by line."""
    figure = figure_of(job) if job.metric else f"val_accuracy {figure_of(job)}"
    choice = "as asked" if job.forced else f"chosen by {job.policy}"
    facts: list[Fact] = [
        *([("sample", sample.source)] if sample else []),
        *(_verdict(job, sample.true_label) if sample and sample.digit is not None else []),
        ("by", f"{job.model_name} version {job.model_version}, {figure}"),
        ("worker", f"{job.worker}, {choice}"),
        *([("moved", f"from {job.rerouted_from}, which was retired")] if job.rerouted_from else []),
    ]
    if not job.done:
        accepted = f", accepted in {latency_ms:.1f} ms" if latency_ms is not None else ""
        return [*facts, ("job", f"{job.id} {job.status}{accepted}")]
    if job.error:
        facts.append(("error", f"{job.error.detail} ({job.error.code})"))
    status = "" if job.status == "succeeded" else f" {job.status}"
    return [*facts, ("took", _timing(job, latency_ms)), ("job", f"{job.id}{status}")]


def _verdict(job: Job, true_label: int | None) -> list[Fact]:
    from rich.text import Text

    truth: list[Fact] = [] if true_label is None else [("true label", str(true_label))]
    if not job.predictions:
        return truth
    prediction = job.predictions[0]
    sure = "" if prediction.confidence is None else f", confidence {prediction.confidence:.1%}"
    colour = "red" if true_label not in (None, prediction.predicted) else "green"
    return [("predicted", Text.assemble((str(prediction.predicted), f"bold {colour}"), sure)), *truth]


def _timing(job: Job, latency_ms: float | None) -> str:
    known = [
        ("here", latency_ms),
        ("end to end", job.end_to_end_ms),
        ("in the queue", job.queue_wait_ms),
        ("inference", job.inference_ms),
    ]
    return ", ".join(f"{value_ms:.3g} ms {what}" for what, value_ms in known if value_ms is not None)


def _view(digit: Any, facts: list[Fact]) -> Table:
    """The facts, and the digit in front of them if there is one."""
    from rich.markup import escape
    from rich.table import Table

    from modelyard.picture import half_blocks

    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for name, fact in facts:
        lines.add_row(name, escape(fact) if isinstance(fact, str) else fact)
    if digit is None:
        return lines
    view = Table.grid(padding=(1, 3))
    view.add_row(half_blocks(digit), lines)
    return view
