"""Tells the processes of a pool that MLflow has reported a change of the registry, so that they need not wait to look.

An event is lost while Redis is away. Its readers look at the registry from time to time anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from app.redis import keys
from app.redis.client import AsyncClient, RedisError, connect, ledger_errors
from app.settings import Settings

LISTEN_S = 1.0  # between two looks whether to stop
RETRY_S = 10.0


async def publish(client: AsyncClient, model_name: str) -> None:
    """Tell of a change of a registered model.

    Raises:
        LedgerUnavailableError: Redis does not answer.
    """
    with ledger_errors():
        await client.publish(keys.REGISTRY_CHANNEL, model_name)


class RegistryEvents:
    """The thread that listens, on a connection of its own.

    Args:
        hear: Called in that thread with the name of the registered model that has changed.
    """

    def __init__(self, settings: Settings, hear: Callable[[str], None]) -> None:
        self._settings = settings
        self._hear = hear
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry events", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            # It is away, or refuses the channel by the users of an older release.
            except (RedisError, OSError):
                self._closing.wait(RETRY_S)

    def _listen(self) -> None:
        with connect(self._settings) as client, client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(keys.REGISTRY_CHANNEL)
            while not self._closing.is_set():
                if message := channel.get_message(timeout=LISTEN_S):
                    self._hear(message["data"].decode("utf-8", "replace"))
