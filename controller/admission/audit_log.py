"""The audit log: who cancelled or resent a job, and who was refused for their API key; a JSON object a line.

Logger `modelyard.audit`, to standard error, or to the file of `MODELYARD_AUDIT_LOG`. A logger that was given a handler
before keeps that alone. No key is ever written, nor its hash. Refusals are bounded, as strangers can cause them: ten
lines a second of each kind, and then a line that says how many more there were.
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
from app.errors import ConfigurationError, ModelyardError
from app.logs import RedactingFormatter
from modelyard.redaction import HIDDEN

REFUSALS_PER_S = 10
SHOWN_CHARACTERS = 200  # of what a caller chose
_KEY = re.compile(rf"{KEY_PREFIX}[\w-]+")  # one that was put where it does not belong, such as the path

logger = logging.getLogger("modelyard.audit")

Client = tuple[str, int] | None


class Audit:
    """Writes the lines."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[str, str, str], int] = {}  # of this second

    @contextmanager
    def act(
        self, event: str, done: str, caller: str, client: Client, job_id: str
    ) -> Iterator[dict[str, str]]:
        """Note what a caller does to a job: the outcome `done`, or the code of the error that ended it.

        Args:
            caller: Name of their API key, empty where there are no keys.

        Yields:
            More members of the line.
        """
        members = {"key": caller, "job_id": job_id}
        try:
            yield members
        except ModelyardError as error:
            self.refuse(event, error, client, **members)
            raise
        self._write(event, done, client, members)

    def refuse(self, event: str, error: ModelyardError, client: Client, **members: str) -> None:
        """Note that a caller was refused."""
        reason = error.detail.partition(";")[0]
        kind = (event, error.code, reason)
        n_before = self._refusals.get(kind, 0)
        self._refusals[kind] = n_before + 1
        if not n_before:
            asyncio.get_running_loop().call_later(1.0, self._count, kind)
        if n_before < REFUSALS_PER_S:
            self._write(event, error.code, client, {"reason": reason, **members})

    def close(self) -> None:
        """Write the counts that are due."""
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
    """The audit log for as long as a controller serves.

    Args:
        path: File to append to; it is opened anew when it was moved away. None is standard error.
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
    """See that the audit log can be written before anything starts.

    Raises:
        ConfigurationError: It cannot.
    """
    try:
        if path:
            path.open("ab").close()
    except OSError as error:
        raise ConfigurationError(
            f"MODELYARD_AUDIT_LOG={path} cannot be written ({error.strerror}); name a file in a folder that the "
            "controller may write to"
        ) from None
