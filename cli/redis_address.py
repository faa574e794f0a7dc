"""Adds the address, and what to do, to errors about a Redis that is unreachable or refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.server_errors import LedgerFullError, LedgerUnavailableError
from app.settings import Settings

LOGIN = "name a user in REDIS_URL, and the file with its password in REDIS_PASSWORD_FILE"
REMEDIES = {
    "NOPERM": "connect as a user with all rights, such as `operator` of deploy/redis-users.acl",
    "NOAUTH": LOGIN,
    "WRONGPASS": LOGIN,
}


@asynccontextmanager
async def located(settings: Settings) -> AsyncIterator[None]:
    """Add the address, without a password, and a remedy to errors about Redis.

    Raises:
        LedgerUnavailableError: The error of the context, with the address.
    """
    try:
        yield
    except LedgerFullError:
        raise
    except LedgerUnavailableError as error:
        remedy = "start it, or set REDIS_URL to a running server"
        if not settings.redis_url:
            remedy = "start a pool here with `modelyard up`, or set REDIS_URL or MODELYARD_STATE_DIR"
        remedy = next((REMEDIES[sign] for sign in REMEDIES if sign in error.detail), remedy)
        raise LedgerUnavailableError(
            f"{error.detail.partition(';')[0]} at {settings.shown_redis_url}; {remedy}"
        ) from error
