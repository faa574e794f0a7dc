"""`modelyard flower`: Flower on the project's Celery application."""

from __future__ import annotations

import os
from pathlib import Path

import click

from app.api_keys import check_exposure, read_keys
from app.logs import configure_logging, is_json
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings, load
from cli.local_pool.listening import refusal
from modelyard.commands.console_output import examples

LOOPBACK = "127.0.0.1"
LOGIN_FILE = "FLOWER_BASIC_AUTH_FILE"
LOGIN_REMEDY = "set FLOWER_BASIC_AUTH=user:password, or FLOWER_BASIC_AUTH_FILE to a file that holds it"


@click.command(
    "flower",
    context_settings={"ignore_unknown_options": True},
    epilog="All FLOWER_* variables work too; FLOWER_BASIC_AUTH_FILE names a file with the login.\n\n"
    + examples("modelyard flower", "FLOWER_BASIC_AUTH_FILE=login modelyard flower --address=0.0.0.0"),
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTIONS]...")
def command(options: tuple[str, ...]) -> None:
    """Monitor workers, queues and batches in Flower, by default on 127.0.0.1:5555 only."""
    from app.celery_app import create_celery

    if any(option.lstrip("-").replace("_", "-").startswith("basic-auth") for option in options):
        raise ConfigurationError(
            "a login on the command line can be read by every user of this machine; " + LOGIN_REMEDY
        )
    if is_json():
        configure_logging()  # Flower keeps handlers that it finds
    _read_login()
    for name in [name for name, value in os.environ.items() if name.startswith("FLOWER_") and not value]:
        del os.environ[name]  # Flower would treat an empty login as valid
    # By default Flower listens on every interface.
    os.environ.setdefault("FLOWER_ADDRESS", LOOPBACK)
    settings = load(ControllerSettings)
    _check_options(settings, options)
    create_celery(settings).start(["flower", *options])


def _read_login() -> None:
    """Read Flower's login from the file in FLOWER_BASIC_AUTH_FILE; an empty file means no login.

    Raises:
        ConfigurationError: The file cannot be read, or the login is given twice.
    """
    path = os.environ.pop(LOGIN_FILE, "")
    if not path:
        return
    try:
        login = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{LOGIN_FILE}={path} cannot be read: {error}") from None
    if login and os.environ.get("FLOWER_BASIC_AUTH"):
        raise ConfigurationError(f"FLOWER_BASIC_AUTH and {LOGIN_FILE} both hold a login; remove one of them")
    if login:
        os.environ["FLOWER_BASIC_AUTH"] = login


def _check_options(settings: ControllerSettings, options: tuple[str, ...]) -> None:
    # Read in the same way as by Flower, including its configuration file.
    from flower.command import apply_env_options, apply_options
    from tornado.options import options as flower

    apply_env_options()
    apply_options("flower", options)
    address = LOOPBACK if flower.unix_socket else flower.address
    check_login(settings, address, bool(flower.basic_auth or flower.auth))
    if not flower.unix_socket and (problem := refusal("Flower", address, flower.port, "FLOWER_PORT")):
        raise ConfigurationError(problem)


def check_login(settings: ControllerSettings, address: str, has_login: bool) -> None:
    """Refuse to start a Flower that is less protected than the controller.

    Raises:
        ConfigurationError: It needs a login and has none.
    """
    if not has_login and read_keys(settings):
        raise ConfigurationError(
            f"API keys are set, so Flower, which shows every batch, needs a login too: {LOGIN_REMEDY}"
        )
    check_exposure("Flower", address, has_login, LOGIN_REMEDY, settings)
