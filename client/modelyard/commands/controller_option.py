"""Which controller a command talks to, and the URL that reaches a server on this machine."""

from __future__ import annotations

import ipaddress
import os

import click

HOST, PORT = "127.0.0.1", 9000
URL_OPTION = click.option(
    "--url", help="URL of the controller [MODELYARD_URL]; default: from MODELYARD_HOST and MODELYARD_PORT."
)


def controller_url(given: str | None) -> str:
    """The controller's URL: the given one, else MODELYARD_URL, else the address that a controller here listens on."""
    url = given or os.environ.get("MODELYARD_URL")
    if url:
        return url
    host = os.environ.get("MODELYARD_HOST") or HOST
    return local_url(host.strip("[]"), os.environ.get("MODELYARD_PORT") or PORT)


def local_url(host: str, port: int | str) -> str:
    """The URL at which this machine reaches a server that listens there; one that listens everywhere, on loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"  # a name
    is_six = address.version == 6
    if address.is_unspecified:
        host = "::1" if is_six else "127.0.0.1"
    return f"http://[{host}]:{port}" if is_six else f"http://{host}:{port}"
