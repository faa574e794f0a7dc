"""`python -m workers.in_environment FD`: a worker inside its model's own environment.

`workers.model_environment` starts it, and hands over what it has found out: here MLflow may be of another release than
the registry, so the registry is not asked again.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from app.errors import ModelyardError
from app.logs import configure_logging
from app.settings import WorkerSettings
from workers.model_lookup import ModelVersion


class Handover(msgspec.Struct, frozen=True):
    """What the worker outside has found out.

    Attributes:
        settings: All of its settings, by field name.
        folder: Folder for temporary files, to be removed at the end.
        is_trial: Whether to load the model once, and no more; then the answer replaces this in the file.
    """

    settings: dict[str, Any]
    found: ModelVersion
    folder: str
    is_trial: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Why a trial failed; both empty where it did not."""

    code: str = ""
    detail: str = ""


def main() -> None:
    """Serve, or try, what the file of the descriptor names."""
    os.environ.pop("PYTHONPATH", None)  # it is not for what the model starts
    with open(int(sys.argv[1]), "r+b") as file:
        handed = msgspec.msgpack.decode(file.read(), type=Handover)
        settings = WorkerSettings(**handed.settings)
        if handed.is_trial:
            answer = msgspec.msgpack.encode(_try(handed.found, settings))
            file.seek(0)
            file.truncate()
            file.write(answer)
            return
    configure_logging()
    from workers.main import run

    try:
        run(settings, handed)
    except ModelyardError as error:
        sys.exit(f"modelyard: {error.detail}")


def _try(found: ModelVersion, settings: WorkerSettings) -> Refusal:
    from workers import model

    try:
        model.load(found, settings)
    except ModelyardError as error:
        return Refusal(error.code, error.detail)
    return Refusal()


if __name__ == "__main__":
    main()
