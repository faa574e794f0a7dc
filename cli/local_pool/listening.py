"""Why a server could not listen at an address."""

from __future__ import annotations

import errno
import socket

LARGEST_PORT = 65535
# port -> address, of one server
ADDRESS_VARIABLES = {
    "MODELYARD_PORT": "MODELYARD_HOST",
    "FLOWER_PORT": "FLOWER_ADDRESS",
    "MLFLOW_PORT": "MLFLOW_HOST",
}


def refusal(what: str, host: str, port: int, variable: str) -> str:
    """Why a server cannot listen there, and what to do; empty if it can.

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
        return (
            f"{address}={host}: the address of {what} is unknown; expected an address or name of this machine"
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {port} of {what} is taken; stop the process that listens there, or set {variable} to "
                f"another port"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"port {port} of {what} is for root only; set {variable} to a port from 1024"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return f"{address}={host}: the address of {what} belongs to another machine; expected one of this machine"
        return f"{what} cannot listen on {host}, port {port} ({error.strerror}); set {address} or {variable}"
    return ""
