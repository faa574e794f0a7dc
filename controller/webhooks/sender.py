"""Sends one webhook: signs it, connects to a checked address, and follows no redirect."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import httpcore
import httpx

from app.server_errors import first_line
from app.settings import ControllerSettings
from controller.webhooks.destinations import may_connect
from modelyard.webhooks import sign

GONE = 410  # the receiver wants no more of it
MOST_CONNECTIONS = 100


class DeliveryError(Exception):
    """An attempt failed.

    Attributes:
        is_final: Whether further attempts are pointless.
    """

    def __init__(self, detail: str, *, is_final: bool = False) -> None:
        super().__init__(detail)
        self.is_final = is_final


class Sender:
    """Sends webhooks, over connections that stay open.

    Args:
        signing_keys: Each signs.
    """

    def __init__(self, settings: ControllerSettings, signing_keys: Sequence[bytes]) -> None:
        self._timeout_s = settings.webhook_timeout_s
        self._keys = signing_keys
        self._agent = f"Modelyard/{version('modelyard')}"
        # Not httpx: it would use the proxies of the environment, and resolve the name itself.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=MOST_CONNECTIONS,
            keepalive_expiry=15.0,
            network_backend=CheckedBackend(settings),
        )

    async def send(self, url: str, webhook_id: str, body: bytes) -> None:
        """Post a document; return if the answer is 2xx.

        Raises:
            DeliveryError: It was not delivered.
        """
        headers = sign(self._keys, webhook_id, int(time.time()), body) | {
            "content-type": "application/json",
            "user-agent": self._agent,
        }
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._pool.stream("POST", url, headers=list(headers.items()), content=body) as answer,
            ):
                status = answer.status  # its body is not read
        except TimeoutError:
            raise DeliveryError(f"no answer within {self._timeout_s:g} s") from None
        except Exception as error:  # httpcore's errors, and those of TLS, sockets and invalid URLs
            raise DeliveryError(first_line(error)) from error
        if not 200 <= status < 300:
            hint = "; redirects are not followed" if 300 <= status < 400 else ""
            raise DeliveryError(f"the receiver answered {status}{hint}", is_final=status == GONE)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to allowed addresses. A name is resolved once, so that it cannot change after the check."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first allowed address of a host that answers.

        Raises:
            httpcore.ConnectError: The host has no allowed address.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error.strerror}") from None
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        allowed = [each for each in addresses if may_connect(each, self._settings)]
        if not allowed:
            raise httpcore.ConnectError(f"{host} has no public address, to which webhooks may be sent")
        *others, last = allowed
        for address in others:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(last, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait between two attempts."""
        await self._backend.sleep(seconds)
