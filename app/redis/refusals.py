"""Refusals of Redis, and connections that close on a refusal.

A new connection may succeed: it resolves the name again, which finds the new primary after a failover, and
authenticates again. If Redis refuses every client (no disk, no replica, a hanging script), the error is still that of
a lost connection: every client here, including Celery's consumer, recovers from it.
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from app.redis import keys
from app.redis.script import load
from app.server_errors import first_line

# Before Redis 7 the error of a command in a script follows another text, after a dash.
_REFUSAL = re.compile(
    r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING|MISCONF|NOAUTH|WRONGPASS|NOPERM|NOREPLICAS|BUSY|TRYAGAIN|UNKILLABLE"
    r"|CLUSTERDOWN|ERR max number of clients reached)\b"
)
# Arguments of an EVAL that changes nothing, and is refused where the ledger's scripts are.
PROBE = (load("probe_write").source, 1, keys.BACKLOG)


class RefusedError(RedisConnectionError):
    """Redis refuses, and the connection was closed. The text is that of Redis."""

    def __repr__(self) -> str:
        return f"RefusedError({str(self)!r})"


def refusal(error: BaseException | None) -> str:
    """Redis's text if this error or its cause is such a refusal, otherwise empty."""
    if not isinstance(error, Exception):
        return ""
    text, code = first_line(error), getattr(error, "status_code", None) or ""
    found = _REFUSAL.search(text if text.startswith(code) else f"{code} {text}")
    if not found:
        return refusal(error.__cause__)
    return found.string[found.start() :].lstrip("-").partition(" script: ")[0]


class _Renewing:
    """A connection that closes when Redis refuses a command.

    During the handshake redis-py handles replies itself and ignores some errors. An error that ends the handshake, such
    as a refused PING, is converted here, because kombu would not recover from it.
    """

    _greets = False

    def on_connect_check_health(self, *arguments: Any, **options: Any) -> None:
        self._greets = True
        try:
            super().on_connect_check_health(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            if not (said := refusal(error)):
                raise
            raise RefusedError(said) from error
        finally:
            self._greets = False

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            if self._greets or not (said := refusal(error)):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise RefusedError(said) from error


class _AsyncRenewing:
    """The same, asynchronous."""

    _greets = False

    async def on_connect_check_health(self, *arguments: Any, **options: Any) -> None:
        self._greets = True
        try:
            await super().on_connect_check_health(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            if not (said := refusal(error)):
                raise
            raise RefusedError(said) from error
        finally:
            self._greets = False

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            if self._greets or not (said := refusal(error)):
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RefusedError(said) from error


def renewing(connection_class: type[Any]) -> type[Any]:
    """The class of connections that close on a refusal."""
    return type(connection_class.__name__, (_Renewing, connection_class), {})


def async_renewing(connection_class: type[Any]) -> type[Any]:
    """The same, asynchronous."""
    return type(connection_class.__name__, (_AsyncRenewing, connection_class), {})
