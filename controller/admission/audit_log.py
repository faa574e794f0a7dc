"""The audit log: cancelled and resent jobs with their callers, and refused API keys; one JSON object per line.

The logger `modelyard.audit` writes to standard error or to the file of `MODELYARD_AUDIT_LOG`. A logger that already has
a handler keeps only that one. Keys and their hashes are never written. Refusals are limited, because anyone can cause
them: ten lines per second and kind, then one line with the number of further refusals.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson

from app.api_keys import KEY_PREFIX
from app.logs import RedactingFormatter
from app.server_errors import ConfigurationError, ModelyardError
from modelyard.redaction import HIDDEN

REFUSALS_PER_S = 10
SHOWN_CHARACTERS = 200  # maximum length of text chosen by a caller
_KEY = re.compile(rf"{KEY_PREFIX}[\w-]+")  # matches a key in a wrong place, such as the path

logger = logging.getLogger("modelyard.audit")

Client = tuple[str, int] | None


class Audit:
    """Writes the audit lines."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[str, str, str], int] = {}  # counts of the current second

    @contextmanager
    def act(
        self, event: str, done: str, caller: str, client: Client, job_id: str
    ) -> Iterator[dict[str, str]]:
        """Log a caller's action on a job: the result is `done`, or the code of the error that ended it.

        Args:
            caller: Name of the caller's API key, empty without keys.

        Yields:
            A dictionary for further members of the line.
        """
        members = {"key": caller, "job_id": job_id}
        try:
            yield members
        except ModelyardError as error:
            self.refuse(event, error, client, **members)
            raise
        self._write(event, done, client, members)

    def refuse(self, event: str, error: ModelyardError, client: Client, **members: str) -> None:
        """Log a refused request."""
        reason = error.detail.partition(";")[0]
        kind = (event, error.code, reason)
        n_before = self._refusals.get(kind, 0)
        self._refusals[kind] = n_before + 1
        if not n_before:
            asyncio.get_running_loop().call_later(1.0, self._count, kind)
        if n_before < REFUSALS_PER_S:
            self._write(event, error.code, client, {"reason": reason, **members})

    def close(self) -> None:
        """Write the pending counts."""
        for kind in list(self._refusals):
            self._count(kind)

    def _count(self, kind: tuple[str, str, str]) -> None:
        event, code, reason = kind
        n_more = self._refusals.pop(kind, 0) - REFUSALS_PER_S
        if n_more > 0:
            self._write(event, code, None, {"reason": reason}, more=n_more)

    @staticmethod
    def _write(event: str, outcome: str, client: Client, members: dict[str, str], **counts: int) -> None:
        shown = {name: _KEY.sub(HIDDEN, value)[:SHOWN_CHARACTERS] for name, value in members.items() if value}
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        address = {"address": client[0]} if client else {}
        line = {"time": at, "event": event, "outcome": outcome, **shown, **address, **counts}
        logger.info("%s", orjson.dumps(line).decode())


@contextmanager
def audit_log(path: Path | None) -> Iterator[Audit]:
    """The audit log during the lifetime of a controller.

    Args:
        path: File to append to; it is reopened after it was moved. None is standard error.
    """
    audit = Audit()
    if logger.handlers:
        yield audit
        audit.close()
        return
    handler = WatchedFileHandler(path) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield audit
    finally:
        audit.close()
        logger.removeHandler(handler)
        logger.propagate = True
        handler.close()


def check_writable(path: Path | None) -> None:
    """Check before the start that the audit log can be written.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        if path:
            path.open("ab").close()
    except OSError as error:
        raise ConfigurationError(
            f"MODELYARD_AUDIT_LOG={path} cannot be written ({error.strerror}); name a file in a folder that the "
            "controller may write to"
        ) from None
