"""Ends tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_AGAIN_S = 0.2


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. Its result or error is left in it.

    Libraries lose a cancellation that arrives together with an awaited result: `wait_for` in Python 3.11, and redis-py
    where it reads a reply. So it is repeated.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
