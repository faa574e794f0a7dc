"""`modelyard predict`: sends one digit to a controller and shows what it was taken for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.sample_option import chosen_sample

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from modelyard import Client, Job
    from modelyard.calls import SubmitOptions

    Fact: TypeAlias = tuple[str, str | Text]


@click.command("predict")
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option("--digit", type=int, metavar="I", help="Index of a held-out digit; default: a random one.")
@click.option("--worker", type=int, metavar="N", help="Worker number to use instead of the policy's choice.")
@click.option("--model", metavar="NAME", help="Model name to use.")
@click.option("--version", metavar="V", help="Version of that model to use: its number or an alias.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to wait for the outcome; 0 only submits.",
)
@URL_OPTION
def command(
    image: Path | None,
    digit: int | None,
    worker: int | None,
    model: str | None,
    version: str | None,
    wait_s: float,
    url: str | None,
) -> None:
    """Send IMAGE (a PNG of one digit), or a held-out digit, to a controller."""
    from rich.console import Console

    from modelyard import Client

    if image is not None and digit is not None:
        raise click.UsageError("give an IMAGE or --digit, not both")
    url = controller_url(url)
    sample, source, true_label = chosen_sample(image, digit)
    options: SubmitOptions = {"worker": worker, "model": model, "version": version}
    with Client(url) as client:
        job, latency_ms = _predict(client, sample, wait_s, options)
    Console().print(_view(sample, _facts(job, source, true_label, latency_ms)))
    if not job.done:
        click.echo(f"result: {url.rstrip('/')}/results/{job.id}")  # in one piece, to be copied


def _predict(client: Client, sample: Any, wait_s: float, options: SubmitOptions) -> tuple[Job, float]:
    """The job, and how long the client waited for it in ms."""
    started_s = time.perf_counter()
    job = client.predict(sample, wait_s=wait_s, **options) if wait_s else client.submit(sample, **options)
    return job, (time.perf_counter() - started_s) * 1000


def _facts(job: Job, source: str, true_label: int | None, latency_ms: float) -> list[Fact]:
    """What to tell about a job, line by line."""
    accuracy = "unknown" if job.val_accuracy is None else f"{job.val_accuracy:.4f}"
    choice = "as asked" if job.forced else f"chosen by {job.policy}"
    facts: list[Fact] = [
        ("sample", source),
        *_verdict(job, true_label),
        ("by", f"{job.model_name} version {job.model_version}, val_accuracy {accuracy}"),
        ("worker", f"{job.worker}, {choice}"),
    ]
    if not job.done:
        return [*facts, ("job", f"{job.id} {job.status}, accepted in {latency_ms:.1f} ms")]
    return [*facts, ("took", _timing(job, latency_ms)), ("job", job.id)]


def _verdict(job: Job, true_label: int | None) -> list[Fact]:
    from rich.text import Text

    truth: list[Fact] = [] if true_label is None else [("true label", str(true_label))]
    if not job.predictions:
        return truth
    prediction = job.predictions[0]
    sure = "" if prediction.confidence is None else f", confidence {prediction.confidence:.1%}"
    colour = "red" if true_label not in (None, prediction.predicted) else "green"
    return [("predicted", Text.assemble((str(prediction.predicted), f"bold {colour}"), sure)), *truth]


def _timing(job: Job, latency_ms: float) -> str:
    known = [
        ("here", latency_ms),
        ("end to end", job.end_to_end_ms),
        ("in the queue", job.queue_wait_ms),
        ("inference", job.inference_ms),
    ]
    return ", ".join(f"{value_ms:.3g} ms {what}" for what, value_ms in known if value_ms is not None)


def _view(sample: Any, facts: list[Fact]) -> Table:
    """The digit, and the facts beside it."""
    from rich.markup import escape
    from rich.table import Table

    from modelyard.picture import half_blocks

    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for name, fact in facts:
        lines.add_row(name, escape(fact) if isinstance(fact, str) else fact)
    view = Table.grid(padding=(1, 3))
    view.add_row(half_blocks(sample), lines)
    return view
