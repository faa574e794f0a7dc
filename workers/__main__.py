"""`python -m workers` is `modelyard worker`."""

import sys

from workers.process import fork_client


def main() -> None:
    """Serve the version that the environment variables name, or become its follower."""
    from app.logs import configure_logging, end
    from app.server_errors import ModelyardError, UnavailableError
    from app.settings import WorkerSettings, load
    from modelyard.redaction import redacted
    from workers.process import alias_follower, follower_files

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


if __name__ == "__main__":
    try:
        if fork_client.client_pid():
            from workers.process import supervised_fork

            supervised_fork.supervise(main)
        main()
    except KeyboardInterrupt:  # of a worker that does not serve yet
        sys.exit(130)
