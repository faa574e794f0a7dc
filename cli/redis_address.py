"""Adds the address to errors about an unreachable Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.server_errors import LedgerFullError, LedgerUnavailableError
from app.settings import Settings


@asynccontextmanager
async def located(settings: Settings) -> AsyncIterator[None]:
    """Add the address, without a password, to errors about an unreachable Redis.

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
        raise LedgerUnavailableError(
            f"{error.detail.partition(';')[0]} at {settings.shown_redis_url}; {remedy}"
        ) from error
