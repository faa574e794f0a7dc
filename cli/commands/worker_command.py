"""`modelyard worker`: a supervisor and its serving process, for one model version and its queue."""

from __future__ import annotations

import click

from app.logs import configure_logging
from app.settings import WorkerSettings, load
from modelyard.commands.console_output import examples

EXAMPLES = examples(
    "MODEL_NAME=My_Model MODEL_VERSION=1 modelyard worker",
    "MODEL_NAME=My_Model MODEL_VERSION=champion modelyard worker",
)


@click.command("worker", epilog=EXAMPLES)
@click.option("--model-name", metavar="NAME", help="Registered model [MODEL_NAME].")
@click.option("--model-version", metavar="N|ALIAS|latest", help="Version to serve [MODEL_VERSION].")
@click.option("--worker", "worker_number", type=int, metavar="N", help="Worker number to ask for [WORKER].")
@click.option("--redis-url", metavar="URL", help="Redis [REDIS_URL].")
@click.option(
    "--prepare", is_flag=True, help="Only build the version's environment, where MODELYARD_ENV_MANAGER=uv."
)
def command(
    model_name: str | None,
    model_version: str | None,
    worker_number: int | None,
    redis_url: str | None,
    prepare: bool,
) -> None:
    """Serve one model version from its queue until SIGTERM or Ctrl-C; the current batch is finished.

    With an alias or `latest`, the worker follows it: when the alias moves, the new version is loaded beside the old,
    which then finishes the jobs of its queue and stops.
    """
    from workers.process import alias_follower

    configure_logging()
    settings = load(
        WorkerSettings,
        model_name=model_name,
        model_version=model_version,
        worker_number=worker_number,
        redis_url=redis_url,
    )
    if prepare:
        from workers import model_environment

        model_environment.prepare(settings)
    elif alias_follower.is_needed(settings):
        alias_follower.become(settings)
    else:
        from workers.main import run

        run(settings)
