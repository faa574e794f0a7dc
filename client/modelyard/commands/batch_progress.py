"""Progress of `modelyard batch`: a bar on a terminal, otherwise a line now and then on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from modelyard.batch.sources import Source

TELL_EVERY_S = 10.0  # where no terminal shows a bar


@contextmanager
def rows_progress(source: Source) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of rows that were finished, and shows rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console, started_s, n_done = Console(stderr=True), time.monotonic(), 0
    told_s = started_s
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=1.0)

        def tell(n_rows: int) -> None:
            nonlocal n_done, told_s
            n_done += n_rows
            now_s = time.monotonic()
            line = f"{n_done:,} rows, {n_done / max(now_s - started_s, 0.001):,.0f} per s"
            progress.update(bar, completed=source.progress(), description=line)
            if not console.is_terminal and now_s - told_s > TELL_EVERY_S:
                told_s = now_s
                click.echo(f"{source.progress():.0%} {line}", err=True)

        yield tell
