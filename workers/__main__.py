"""`python -m workers` is `modelyard worker`."""

from app.logs import configure_logging, end
from app.server_errors import ModelyardError, UnavailableError
from app.settings import WorkerSettings, load
from modelyard.redaction import redacted
from workers.process import alias_follower, follower_files

if __name__ == "__main__":
    configure_logging()
    try:
        settings = load(WorkerSettings)
        if alias_follower.is_needed(settings):
            alias_follower.become(settings)
        from workers.main import run

        run(settings)
    except ModelyardError as error:
        follower_files.report_end(redacted(error.detail), is_away=isinstance(error, UnavailableError))
        end(f"modelyard worker: {error.detail}")
