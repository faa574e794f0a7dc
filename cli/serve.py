"""`modelyard serve`: the controller under uvicorn."""

from __future__ import annotations

import signal
import sys

import click

from app.access import KEYS_REMEDY, check_exposure
from app.logs import configure_logging
from app.settings import ControllerSettings, load


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Address to listen on [MODELYARD_HOST].")
@click.option("--port", type=int, metavar="PORT", help="TCP port to listen on [MODELYARD_PORT].")
@click.option("--redis-url", metavar="URL", help="Redis [REDIS_URL].")
@click.option("--access-log", is_flag=True, help="Log every request.")
def command(host: str | None, port: int | None, redis_url: str | None, access_log: bool) -> None:
    """Run the controller until SIGTERM or Ctrl-C."""
    from controller.main import create_app
    from controller.server import make_server

    configure_logging()
    for each in (signal.SIGTERM, signal.SIGINT):
        # Once it has shut down, uvicorn raises the signal again; told to stop and stopped is a success.
        signal.signal(each, lambda *_: sys.exit(0))
    settings = load(ControllerSettings, host=host, port=port, redis_url=redis_url)
    app = create_app(settings)
    check_exposure("the controller", settings.host, app.is_guarded, KEYS_REMEDY, settings)
    server = make_server(app, settings, access_log=access_log)
    server.run()
    if not server.started:
        sys.exit(1)
