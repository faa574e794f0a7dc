"""`modelyard serve`: the controller under uvicorn."""

from __future__ import annotations

import signal
import sys

import click

from app.api_keys import KEYS_REMEDY, check_exposure, read_keys
from app.logs import configure_logging
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings, load
from cli.local_pool.listening import refusal
from modelyard.commands.console_output import examples


@click.command(
    "serve",
    epilog=examples("modelyard serve", "modelyard serve --host 0.0.0.0 --port 9000   # needs API keys"),
)
@click.option("--host", metavar="ADDRESS", help="Address to listen on [MODELYARD_HOST].")
@click.option("--port", type=int, metavar="PORT", help="TCP port to listen on [MODELYARD_PORT].")
@click.option("--redis-url", metavar="URL", help="Redis [REDIS_URL].")
@click.option("--access-log", is_flag=True, help="Log every request.")
def command(host: str | None, port: int | None, redis_url: str | None, access_log: bool) -> None:
    """Run the controller until SIGTERM or Ctrl-C."""
    configure_logging()
    settings = load(ControllerSettings, host=host, port=port, redis_url=redis_url)
    _check(settings)  # before imports that take a second

    from controller.http.server import make_server
    from controller.main import create_app

    for each in (signal.SIGTERM, signal.SIGINT):
        # After its shutdown uvicorn raises the signal again; a requested stop is a success.
        signal.signal(each, lambda *_: sys.exit(0))
    server = make_server(create_app(settings), settings, access_log=access_log)
    try:
        sockets = server.listen()
    except OSError as error:
        raise ConfigurationError(
            f"the controller cannot listen on {settings.host}, port {settings.port} ({error.strerror}); set "
            "MODELYARD_HOST and MODELYARD_PORT to an address that is free"
        ) from None
    server.run(sockets)
    if not server.started:
        sys.exit(1)


def _check(settings: ControllerSettings) -> None:
    _ = settings.effective_redis_url
    check_exposure("the controller", settings.host, bool(read_keys(settings)), KEYS_REMEDY, settings)
    if problem := refusal("the controller", settings.host, settings.port, "MODELYARD_PORT"):
        raise ConfigurationError(problem)
