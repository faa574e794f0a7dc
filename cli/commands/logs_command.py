"""`modelyard logs`: the logs of all processes of the pool on this machine, in one stream."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import click
import msgspec

from app.server_errors import ConfigurationError
from app.settings import Settings, load
from modelyard.commands.console_output import examples

POLL_S = 0.25
TAIL_BYTES = 2**18  # read from the end of each file
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
ISO = re.compile(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{3})?")
COMMON = str.maketrans("/,T", "-. ")  # the spelling in which times of several programs are compared
REDIS = re.compile(r"\d+:\w (\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d{3})")
EXAMPLES = examples(
    "modelyard logs",
    "modelyard logs --follow worker",
    "modelyard logs controller --lines 200 --json | jq -r .line",
)


@click.command("logs", epilog=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--lines",
    "n_lines",
    type=click.IntRange(0, 10_000),
    default=20,
    show_default=True,
    help="Last lines of each process.",
)
@click.option("--follow", "-f", is_flag=True, help="Show new lines as they are written, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document for each line.")
def command(names: tuple[str, ...], n_lines: int, follow: bool, as_json: bool) -> None:
    """Show the logs of the pool that `modelyard up` runs here, in the order of time.

    NAME is the beginning of a process's name: worker, worker-v2, controller, redis, … The logs are files of
    MODELYARD_STATE_DIR.
    """
    folder = load(Settings).state_dir / "logs"
    files = _files(folder, names)
    if not files:
        known = ", ".join(each.stem for each in _files(folder, ()))
        raise ConfigurationError(
            f"no log of {', '.join(names) or 'a pool'} in {folder}; {f'known: {known}; ' if known else ''}"
            "MODELYARD_STATE_DIR says where a pool keeps its logs"
        )
    tails = {path: Tail(path, n_lines) for path in files}
    written: list[tuple[str, str, str]] = [line for tail in tails.values() for line in tail.last_lines]
    for _, name, line in sorted(written, key=lambda each: each[0]):  # the sort keeps the order within a file
        _write(name, line, as_json)
    try:
        while follow:
            time.sleep(POLL_S)
            for path in _files(folder, names):
                tail = tails.setdefault(path, Tail(path, 0))
                for line in tail.new_lines():
                    _write(path.stem, line, as_json)
    except KeyboardInterrupt:
        return


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Logs of the processes whose name begins with one of these; all without names."""
    current = [path for path in folder.glob("*.log") if not path.stem.endswith(".previous")]
    return sorted(path for path in current if not names or path.stem.startswith(tuple(names)))


class Tail:
    """The end of a log file, also across its rotation.

    Attributes:
        last_lines: The last lines at first: time, process, line.
    """

    def __init__(self, path: Path, n_lines: int) -> None:
        self._path = path
        self._inode, self._read_bytes = 0, 0
        self._rest = b""
        stat = path.stat()
        with path.open("rb") as file:
            file.seek(max(0, stat.st_size - TAIL_BYTES))
            content = file.read()
            self._inode, self._read_bytes = stat.st_ino, file.tell()
        complete, newline, self._rest = content.rpartition(b"\n")
        lines = complete.decode(errors="replace").split("\n") if newline else []
        timed = list(_timed(lines))
        self.last_lines = [(at, path.stem, line) for at, line in timed[len(timed) - n_lines :]]

    def new_lines(self) -> Iterator[str]:
        """Lines that were completed since."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        if stat.st_ino != self._inode or stat.st_size < self._read_bytes:
            self._inode, self._read_bytes, self._rest = stat.st_ino, 0, b""
        if stat.st_size == self._read_bytes:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            content = self._rest + file.read()
            self._read_bytes = file.tell()
        complete, newline, self._rest = content.rpartition(b"\n")
        if newline:
            yield from complete.decode(errors="replace").split("\n")


def _timed(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each line with its time as sortable text; one without a time has that of the line before it."""
    at = ""
    for line in lines:
        if found := ISO.search(line[:80]):
            at = found[0].translate(COMMON)
        elif found := REDIS.match(line):
            at = str(datetime.strptime(found[1], "%d %b %Y %H:%M:%S.%f"))[:23]
        yield at, line


def _write(name: str, line: str, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"process": name, "line": line}))
    else:
        colour = COLOURS[sum(name.encode()) % len(COLOURS)]
        click.echo(f"{click.style(f'{name:<12}', fg=colour)} {line}")
