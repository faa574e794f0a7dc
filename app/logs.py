"""How every process logs: to standard error, one line an event."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHATTY = ("alembic", "celery.app.trace", "celery.worker.strategy", "mlflow")


def configure_logging() -> None:
    """Set the root logger up; libraries that narrate are kept to warnings."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=FORMAT)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
