"""Ends the work for a caller who has left: a long poll would otherwise wait for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from controller.cancelling import cancel

T = TypeVar("T")


async def while_present(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work that waits, which is cancelled when the caller closes the connection.

    Raises:
        ClientDisconnect: The caller has left.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await cancel(working)
        await cancel(leaving)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
