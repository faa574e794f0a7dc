"""The benchmark records file: a JSON list to which runs append; it is never truncated."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from filelock import FileLock, Timeout

from modelyard.client_errors import RecordsError

LOCK_TIMEOUT_S = 30.0

StoredRecord: TypeAlias = dict[str, Any]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a benchmark, as the client and the controller saw it.

    Attributes:
        timestamp: When it was sent, ISO 8601 in UTC.
        job_id: None if the request was refused; so are the other fields of a job.
        predicted: Class of the first sample, or None unless succeeded.
        true_label: True class of the sample, or None for a dummy.
        client_latency_ms: Time from sending to the outcome, including repeated attempts.
        status: Status of the job; `refused` without a job.
        error: Error code, or None.
    """

    timestamp: str
    job_id: str | None = None
    worker: int | None = None
    model_name: str | None = None
    model_version: int | None = None
    val_accuracy: float | None = None
    predicted: int | float | None = None
    true_label: int | None = None
    inference_ms: float | None = None
    queue_wait_ms: float | None = None
    end_to_end_ms: float | None = None
    client_latency_ms: float
    status: str
    error: str | None = None


def append_records(path: Path, records: Sequence[Record]) -> Path | None:
    """Append records to a file atomically: readers see all of them or none.

    Simultaneous runs wait for each other. Existing records stay unchanged, whatever fields they have. A file that is
    not a JSON list of objects is renamed, not overwritten.

    Args:
        path: The file; it and its folder are created if they do not exist.
        records: Records to append; an empty list only checks that the file can be written.

    Returns:
        New path of an unreadable file, or None.

    Raises:
        RecordsError: The folder cannot be written to, or another run holds the file for very long.
    """
    path = path.resolve()  # a symbolic link is kept: its target is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
            stored = _read(path)
            kept_aside = _move_aside(path) if stored is None else None
            _replace(path, [*(stored or []), *map(msgspec.to_builtins, records)])
    except Timeout:
        raise RecordsError(
            f"another run has held {path} for {LOCK_TIMEOUT_S:g} s; wait for it, or choose another --output"
        ) from None
    except OSError as error:
        raise RecordsError(
            f"cannot write {path}: {error.strerror or error}; choose another --output"
        ) from None
    return kept_aside


def _read(path: Path) -> list[StoredRecord] | None:
    """Records of a file, or None if it is not a records file; a missing or empty file has no records."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    if not data.strip():
        return []
    try:  # json and not msgspec: what it reads it writes again unchanged, large integers and NaN too
        stored = json.loads(data)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(stored, list) and all(isinstance(record, dict) for record in stored)
    return stored if is_list else None


def _move_aside(path: Path) -> Path:
    """Rename an unreadable file after the time it was found, to the microsecond."""
    found_at = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    aside = path.with_name(f"{path.stem}.unreadable-{found_at}{path.suffix}")
    path.rename(aside)
    return aside


def _replace(path: Path, records: Sequence[StoredRecord]) -> None:
    """Write the new file next to the old one, then replace that."""
    lines = ",\n".join(json.dumps(record) for record in records)
    written = path.with_name(path.name + ".tmp")  # only the holder of the lock writes it
    with written.open("w", encoding="ascii") as file:
        file.write(f"[\n{lines}\n]\n" if lines else "[]\n")
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable across a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
