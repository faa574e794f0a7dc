"""Logging of all processes: to standard error, one line per event, as text or as JSON (`MODELYARD_LOG_FORMAT`)."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import NoReturn

from modelyard.redaction import redacted

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FORMAT_VARIABLE = "MODELYARD_LOG_FORMAT"
CHATTY = ("alembic", "celery.app.trace", "celery.worker.strategy", "mlflow")
# What a call of a logger may give as `extra`; those of other libraries have other meanings.
EXTRA = ("job_id", "batch_id", "request_id", "model", "version", "worker_id")
ACCESS = ("address", "method", "path", "http_version", "status")  # arguments of uvicorn's access log

Fields = Callable[[], Mapping[str, object]]
_context: list[Fields] = []
request_id: ContextVar[str] = ContextVar("request_id", default="")


class RedactingFormatter(logging.Formatter):
    """Removes secrets from all log output, including tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The redacted text of a record."""
        return redacted(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, without secrets: time, level, logger, message, and the known context of job and model."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON object of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if asked := request_id.get():
            line["request_id"] = asked
        for fields in _context:
            line |= fields()
        line |= {name: vars(record)[name] for name in EXTRA if name in vars(record)}
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            line |= dict(zip(ACCESS, record.args, strict=False))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        # Before encoding, which escapes characters of secrets.
        shown = {name: redacted(value) if isinstance(value, str) else value for name, value in line.items()}
        return json.dumps(shown, default=str, ensure_ascii=False)


def is_json() -> bool:
    """Whether this process logs JSON. Read from the environment: logging begins before the settings are read."""
    return os.environ.get(FORMAT_VARIABLE, "").strip() == "json"


def add_context(fields: Fields) -> None:
    """Add fields to every JSON line from now on; `fields` is called for each line."""
    _context.append(fields)


def configure_logging(level: int = logging.INFO) -> None:
    """Configure the root logger; verbose libraries log only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    if is_json():
        # MLflow would write lines of its own format.
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        handler.setFormatter(JsonFormatter())
    else:
        sys.excepthook = _show_uncaught
        handler.setFormatter(RedactingFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def end(message: str) -> NoReturn:
    """End the process with status 1 and a last line, which JSON logs hold as a critical one."""
    if not is_json():
        sys.exit(message)
    logging.getLogger("modelyard").critical(message)
    sys.exit(1)


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception as Python does, but without secrets."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("modelyard").critical("an uncaught exception ends the process", exc_info=error)
