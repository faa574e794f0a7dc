"""`python -m workers.in_environment FD`: a worker inside its model's own environment.

`workers.model_environment` starts it and hands over its results. MLflow's release here may differ from the registry's,
so the registry is not asked again.
"""

from __future__ import annotations

import os
import sys

import msgspec

from app.logs import configure_logging, end
from app.server_errors import ModelyardError, UnavailableError
from app.settings import WorkerSettings
from modelyard.redaction import redacted
from workers.handover import Handover, Refusal
from workers.model_lookup import ModelVersion
from workers.process import follower_files


def main() -> None:
    """Serve or try the version that the file of the descriptor names."""
    os.environ.pop("PYTHONPATH", None)  # processes started by the model must not inherit it
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
    try:
        from workers.main import run

        run(settings, handed)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModelyardError as error:
        follower_files.report_end(redacted(error.detail), is_away=isinstance(error, UnavailableError))
        end(f"modelyard: {error.detail}")


def _try(found: ModelVersion, settings: WorkerSettings) -> Refusal:
    from workers import model

    try:
        model.load(found, settings)
    except ModelyardError as error:
        return Refusal(error.code, error.detail)
    return Refusal()


if __name__ == "__main__":
    main()
