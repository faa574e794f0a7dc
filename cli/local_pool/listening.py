"""Where servers listen: the URL that reaches one from this machine, and why one could not listen there."""

from __future__ import annotations

import errno
import ipaddress
import socket

import click

from app.settings import ClientSettings, load

LARGEST_PORT = 65535
URL_OPTION = click.option(
    "--url", help="The controller [MODELYARD_URL]; default: that of MODELYARD_HOST and MODELYARD_PORT."
)
# port -> address, of one server
ADDRESS_VARIABLES = {
    "MODELYARD_PORT": "MODELYARD_HOST",
    "FLOWER_PORT": "FLOWER_ADDRESS",
    "MLFLOW_PORT": "MLFLOW_HOST",
}


def local_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens there; one that listens everywhere, on loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"  # a name
    is_six = address.version == 6
    if address.is_unspecified:
        host = "::1" if is_six else "127.0.0.1"
    return f"http://[{host}]:{port}" if is_six else f"http://{host}:{port}"


def controller_url(given: str | None) -> str:
    """The controller that a client command asks.

    Args:
        given: What the caller named; else it is MODELYARD_URL, else the address that a controller here listens on.

    Raises:
        ConfigurationError: A setting is malformed.
    """
    if given:
        return given
    settings = load(ClientSettings)
    return settings.url or local_url(settings.host.strip("[]"), settings.port)


def refusal(what: str, host: str, port: int, variable: str) -> str:
    """Why a server could not listen there, and what to do; empty where it could.

    Args:
        what: Name of the server, for the message.
        host: Address or name; empty for every address.
        port: TCP port.
        variable: Environment variable that sets the port.
    """
    if port > LARGEST_PORT:
        return f"port {port} of {what} is above {LARGEST_PORT}; set {variable} to a lower one"
    address = ADDRESS_VARIABLES[variable]
    try:
        for family, kind, _, _, place in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
                probe.bind(place)
    except (socket.gaierror, UnicodeError):
        return f"{address}={host}: the address of {what} is unknown; expected one of this machine's, or a name of it"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {port} of {what} is taken; stop what listens there, or set {variable} to another port"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"port {port} of {what} is for root only; set {variable} to a port from 1024"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return f"{address}={host}: the address of {what} is none of this machine's; expected one that is"
        return f"{what} cannot listen on {host}, port {port} ({error.strerror}); set {address} or {variable}"
    return ""
