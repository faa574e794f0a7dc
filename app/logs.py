"""How every process logs: to standard error, one line an event."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

from modelyard.redaction import redacted

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHATTY = ("alembic", "celery.app.trace", "celery.worker.strategy", "mlflow")


class RedactingFormatter(logging.Formatter):
    """Takes secrets out of whatever is logged, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of a record."""
        return redacted(super().format(record))


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python shows what nobody caught, without the secrets."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def configure_logging() -> None:
    """Set the root logger up; libraries that narrate are kept to warnings."""
    sys.excepthook = _show_uncaught
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
