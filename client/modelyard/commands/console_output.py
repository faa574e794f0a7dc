"""The output of every command: tables for people, one JSON document for programs, plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from modelyard.errors import UnavailableError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from modelyard.schemas import Job, RankedVersion, WorkerInfo

ABSENT = "-"
GAP = "  "
FOLDED_FROM = 24  # characters; a longer cell may be folded in a table
UNKNOWN = "unknown"
WATCH_S = 2.0  # the pool's own view is as old as this
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
WATCH_OPTION = click.option(
    "--watch",
    "watch_s",
    is_flag=False,
    flag_value=WATCH_S,
    type=click.FloatRange(0.1, 3600),
    metavar="[SECONDS]",
    help=f"Redraw every SECONDS, {WATCH_S:g} without a number, until Ctrl-C.",
)


def examples(*lines: str) -> str:
    """The epilog of a command's help: one example a line, not wrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def figure_of(each: Job | RankedVersion | WorkerInfo) -> str:
    """The figure that ranks a version; with the name of its metric, unless that is val_accuracy."""
    if each.metric not in (None, "val_accuracy"):
        return f"{each.metric} {UNKNOWN if each.metric_value is None else f'{each.metric_value:.5g}'}"
    return UNKNOWN if each.val_accuracy is None else f"{each.val_accuracy:.4f}"


@dataclass(frozen=True)
class Listing:
    """Rows with the same columns. None is shown as `-`.

    Attributes:
        columns: Titles.
        right: Titles of the columns of numbers, which are aligned to the right.
        title: Line above the table.
        empty: Line in its place where there is no row.
        marked: Places of the rows that stand out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: Collection[str] = ()
    title: str = ""
    empty: str = "nothing"
    marked: Collection[int] = ()

    @property
    def lines(self) -> list[str]:
        """Titles and rows for programs such as `cut`: one a line, cells separated by tabs."""
        return ["\t".join(map(_plain, cells)) for cells in (self.columns, *self.rows)]


def document(value: Any) -> Any:
    """A document of the HTTP API as JSON values; fields that may be absent are, where they are None."""
    if isinstance(value, msgspec.Struct):
        pairs = [(each, getattr(value, each.name)) for each in msgspec.structs.fields(value)]
        return {
            each.encode_name: document(content)
            for each, content in pairs
            if content is not None or each.default is not None
        }
    if isinstance(value, tuple):
        return [document(each) for each in value]
    if isinstance(value, dict):
        return {name: document(each) for name, each in value.items()}
    return value


def write_json(value: Any) -> None:
    """Write one JSON document: indented on a terminal, on one line otherwise.

    Args:
        value: Documents of `modelyard.schemas`, alone or in tuples and dicts, or plain values.
    """
    encoded = msgspec.json.encode(document(value))
    click.echo(msgspec.json.format(encoded, indent=2) if is_terminal() else encoded)


def write_listing(listing: Listing) -> None:
    """Write a table on a terminal, and plain lines otherwise."""
    if not listing.rows:
        click.echo(listing.empty)
    elif is_terminal():
        from rich.console import Console

        console = Console()
        console.print(drawn(listing, console.width))
    else:
        click.echo("\n".join(listing.lines))


def watch(read: Callable[[], Listing], interval_s: float) -> None:
    """Redraw what `read` returns until Ctrl-C; while the controller is not available, the last table stays.

    Raises:
        ModelyardError: `read` failed for a reason that does not pass.
    """
    try:
        if is_terminal():
            _redraw(read, interval_s)
        else:
            while True:
                write_listing(read())
                click.echo()
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _redraw(read: Callable[[], Listing], interval_s: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    shown: RenderableType = Text("reading…")
    with Live(shown, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(shown, refresh=True)
            try:
                listing = read()
                shown = drawn(listing, live.console.width) if listing.rows else Text(listing.empty)
                live.update(shown, refresh=True)
            except UnavailableError as error:
                live.update(Group(shown, Text(f"stale: {error.detail}", style="yellow")), refresh=True)
            time.sleep(interval_s)


def drawn(listing: Listing, width: int) -> RenderableType:
    """A table for a terminal, without columns that tell nothing; a paragraph for each row where it is too narrow."""
    cells = [[ABSENT if cell is None else str(cell) for cell in row] for row in listing.rows]
    shown = [
        place for place, column in enumerate(zip(*listing.rows, strict=True)) if any(map(_is_told, column))
    ]
    longest = [max(len(listing.columns[each]), *(len(row[each]) for row in cells)) for each in shown]
    needed = sum(min(each, FOLDED_FROM) + len(GAP) for each in longest) - len(GAP)
    return _table(listing, cells, shown) if needed <= width else _paragraphs(listing, cells, width)


def _table(listing: Listing, cells: Sequence[Sequence[str]], shown: Sequence[int]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    heading = Text(listing.title) if listing.title else None
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, len(GAP), 0, 0))
    for place in shown:
        title = listing.columns[place]
        table.add_column(title, justify="right" if title in listing.right else "left", overflow="fold")
    for place, row in enumerate(cells):
        table.add_row(*(Text(row[each]) for each in shown), style=_style(listing, place))
    return table


def _paragraphs(listing: Listing, cells: Sequence[Sequence[str]], width: int) -> RenderableType:
    from rich.text import Text

    lines = [Text(listing.title)] if listing.title else []
    for place, row in enumerate(cells):
        line = Text(style=_style(listing, place))
        for title, cell, value in zip(listing.columns, row, listing.rows[place], strict=True):
            if not _is_told(value):
                continue
            if line and len(line) + len(GAP) + len(title) + 1 + len(cell) > width:
                lines.append(line)
                line = Text(" ", style=_style(listing, place))  # the further lines of a row are indented
            line.append(GAP if line else "").append(f"{title} ", "dim").append(cell)
        lines.append(line)
    return Text("\n").join(lines)


def _style(listing: Listing, place: int) -> str:
    return "bold green" if place in listing.marked else ""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal's standard error that something takes time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def is_terminal() -> bool:
    """Whether a person reads the output."""
    return sys.stdout.isatty()


def utc(at_ms: float) -> str:
    """A time in ms since the epoch for people, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def refuse_watched_json(watch_s: float | None, *, as_json: bool) -> None:
    """Refuse `--watch` beside `--json`.

    Raises:
        UsageError: Both are given.
    """
    if as_json and watch_s:
        raise click.UsageError("--json writes one document; call it again in place of --watch")


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A number with a fixed count of decimals and its unit; `-` for None."""
    if value is None:
        return ABSENT
    return f"{value:,.{digits}f} {unit}".rstrip()


def _is_told(cell: object) -> bool:
    return cell not in (None, "")


def _plain(cell: object) -> str:
    return ABSENT if cell is None else " ".join(str(cell).split())
