"""What Redis says when it answers and yet refuses, and connections that end then.

Another connection may fare better: it resolves the name anew, which leads to the new primary after a failover, and
authenticates anew. Where Redis refuses everybody (no disk, no replica, a script that does not end), the error is that
of a lost connection all the same: every client here, Celery's consumer too, outlives those by itself.
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from app.errors import first_line
from app.redis import keys
from app.redis.script import load

# Before Redis 7 the error of a command in a script stands behind others, after a dash.
_REFUSAL = re.compile(
    r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING|MISCONF|NOAUTH|WRONGPASS|NOPERM|NOREPLICAS|BUSY|TRYAGAIN|UNKILLABLE"
    r"|CLUSTERDOWN|ERR max number of clients reached)\b"
)
# Arguments of an EVAL that changes nothing, and is refused where the ledger's scripts are.
PROBE = (load("probe_write").source, 1, keys.BACKLOG)


class RefusedError(RedisConnectionError):
    """Redis refuses; the connection has ended. Says what Redis said."""

    def __repr__(self) -> str:
        return f"RefusedError({str(self)!r})"


def refusal(error: BaseException | None) -> str:
    """What Redis said where this error, or its cause, is such a refusal; empty where it is not."""
    if not isinstance(error, Exception):
        return ""
    text, code = first_line(error), getattr(error, "status_code", None) or ""
    found = _REFUSAL.search(text if text.startswith(code) else f"{code} {text}")
    if not found:
        return refusal(error.__cause__)
    return found.string[found.start() :].lstrip("-").partition(" script: ")[0]


class _Renewing:
    """A connection that ends when Redis refuses a command.

    While it connects, redis-py judges each answer itself: it passes over some errors. An error that ends the greeting,
    such as a refused PING, is translated here: kombu would not outlive it.
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
    """The class of connections that end when Redis refuses."""
    return type(connection_class.__name__, (_Renewing, connection_class), {})


def async_renewing(connection_class: type[Any]) -> type[Any]:
    """The same, asynchronous."""
    return type(connection_class.__name__, (_AsyncRenewing, connection_class), {})
