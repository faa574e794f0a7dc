"""The unfinished output of a run: one JSON line for each group of finished rows, in order; also the journal.

A run that was killed leaves whole lines and perhaps a torn last one, which is cut off. The first line says of which
run the file is.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from filelock import FileLock, Timeout

from modelyard.client_errors import RecordsError

INT64 = range(-(2**63), 2**63)
Kinds = dict[str, set[type]]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: the options of the run, and the decisions of its first answer.

    Attributes:
        asked: Fingerprint of the input and the options; another run has another one.
        rows: Rows in a request.
        run_id: Prefix of the idempotency keys.
        encoding: Place of the way in which rows are sent.
        options: Selector of the version that answers all rows.
    """

    asked: str
    rows: int
    run_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    encoding: int = 0
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Consecutive finished rows of one request.

    Attributes:
        start: Place of the first one, counted from 0.
        rows: Number of them.
        version: Model version that answered.
        latency_ms: Time from the arrival of their request to the outcome.
        outputs: Columns by name, each with a value for each row.
        code: Why they were set aside; empty if they were predicted.
        reason: The same, for people.
    """

    start: int
    rows: int
    version: int | None = None
    latency_ms: float | None = None
    outputs: dict[str, list[Any]] = {}
    code: str = ""
    reason: str = ""


class PartFile:
    """The file, open for appending, and locked against a second run.

    Attributes:
        head: The first line; None in a new file.
        n_rows: Number of finished rows.
        n_bad: Those of them that were set aside.
        kinds: Types of the values of each output; `object` for integers beyond 64 bits.

    Raises:
        RecordsError: It cannot be written, another run has it, or it is of another run.
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path = path
        self.head: Head | None = None
        self.n_rows = self.n_bad = 0
        self.kinds: Kinds = {}
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RecordsError(
                f"another run writes {path}; wait for it, or choose another --output"
            ) from None
        try:
            self._file = path.open("a+b")
            self._recover(asked)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the disk is full; what counts as finished was flushed before
            self._file.close()
        if self.head is None:  # nothing was finished
            self.path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(self._lock.lock_file)
        self._lock.release()

    def _recover(self, asked: str) -> None:
        """Count the finished rows, and cut off what a kill has torn."""
        self._file.seek(0)
        size = 0
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                if self.head is None:
                    self.head = msgspec.json.decode(line, type=Head)
                else:
                    seen = _decoder.decode(line)
                    if seen.start != self.n_rows:
                        break
                    self._count(seen)
                size += len(line)
        if self.head and self.head.asked != asked:
            raise RecordsError(
                f"{self.path} is left of a run with another input or other options; repeat that command, or begin anew "
                "with --restart"
            )
        self._file.truncate(size)

    def begin(self, head: Head) -> None:
        """Write the first line."""
        self.head = head
        self._file.write(msgspec.json.encode(head) + b"\n")

    def append(self, groups: Sequence[Finished]) -> None:
        """Write the next finished rows; a kill does not lose them."""
        self._file.write(_encoder.encode_lines(groups))
        self._file.flush()
        for each in groups:
            self._count(each)

    def finished(self) -> Iterator[Finished]:
        """All finished rows."""
        self._file.flush()
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield _decoder.decode(line)

    def _count(self, group: Finished) -> None:
        self.n_rows += group.rows
        self.n_bad += group.rows if group.code else 0
        for name, values in group.outputs.items():
            kinds = set(map(type, values))
            if int in kinds and any(type(each) is int and each not in INT64 for each in values):
                kinds.add(object)
            self.kinds.setdefault(name, set()).update(kinds)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Finished)
