"""Logging of all processes: to standard error, one line per event."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

from modelyard.redaction import redacted

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHATTY = ("alembic", "celery.app.trace", "celery.worker.strategy", "mlflow")


class RedactingFormatter(logging.Formatter):
    """Removes secrets from all log output, including tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The redacted text of a record."""
        return redacted(super().format(record))


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception as Python does, but without secrets."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def configure_logging() -> None:
    """Configure the root logger; verbose libraries log only warnings."""
    sys.excepthook = _show_uncaught
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
