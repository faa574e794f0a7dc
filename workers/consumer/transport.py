"""kombu's Redis transport, which outlives any bytes: what is no wake-up on our queue is counted and dropped.

kombu reads a message within Celery's event loop, where what cannot be read would end the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

from kombu import transport
from kombu.transport import redis as stock
from redis.exceptions import OutOfMemoryError

from app.celery_app import BATCH_TASK, redis_credentials
from app.ledger import ids
from app.redis.refusals import PROBE, renewing
from app.unreadable import What

OnGarbage = Callable[[What, Exception], None]
OnAsked = Callable[[], None]
# What the event loop acts on by itself: to reconnect, or to ask again. kombu counts KeyError among the losses of a
# connection; here it comes from a message that lacks something.
EXPECTED = tuple(
    error
    for error in (Empty, *stock.Transport.connection_errors, *stock.Transport.channel_errors)
    if not issubclass(error, LookupError)
)


def use(queue: str, on_garbage: OnGarbage, on_asked: OnAsked, silences: Callable[[], int]) -> None:
    """Make every Redis connection of Celery's in this process one that outlives garbage.

    Args:
        queue: The worker's queue, which holds wake-ups and nothing else.
        on_garbage: Told of each thing that is dropped.
        on_asked: Told each time that Redis is asked for a message; an idle worker asks every second.
        silences: Gives a number that changes when Redis did not answer the worker elsewhere.
    """

    class NoQoS(stock.QoS):  # type: ignore[misc]
        """Restores nothing, as nothing is acknowledged. Its lock is a write, which a full Redis refuses."""

        def restore_visible(self, *_: Any, **__: Any) -> None: ...

    class Channel(stock.Channel):  # type: ignore[misc]
        """Drops what is not JSON, and connections that may be cut off, which would cost a timeout each to see."""

        QoS = NoQoS

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._heard_silences = dict.fromkeys(("pool", "async_pool"), silences())
            super().__init__(*arguments, **options)
            try:
                self.client.eval(*PROBE)  # it has answered a ping, and may yet refuse to be written to
            except Exception:
                self._disconnect_pools()
                raise

        def _size(self, name: str) -> int:
            # kombu asks in a transaction, in which a full Redis refuses even to read.
            with self.conn_or_acquire() as client:
                return int(client.llen(name))

        def _queue_bind(self, *arguments: Any) -> None:
            # Only kombu's senders read bindings, and the controller is none of them.
            with suppress(OutOfMemoryError):
                super()._queue_bind(*arguments)

        def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
            parameters: dict[str, Any] = super()._connparams(asynchronous)
            self._process_credential_provider(redis_credentials(), parameters)
            return parameters | {"connection_class": renewing(parameters["connection_class"])}

        def _brpop_start(self, *arguments: Any) -> None:
            on_asked()
            if self._drop_suspects("async_pool"):
                self.connection.cycle._register(self, self.client, "BRPOP")  # its new socket
            super()._brpop_start(*arguments)

        def conn_or_acquire(self, *arguments: Any, **options: Any) -> Any:
            self._drop_suspects("pool")
            return super().conn_or_acquire(*arguments, **options)

        def _drop_suspects(self, pool: str) -> bool:
            # Each pool when it is used: what asks for work is to be dropped while no answer is on its way.
            now = silences()
            is_suspect, self._heard_silences[pool] = now != self._heard_silences[pool], now
            if is_suspect:
                getattr(self, pool).disconnect()
            return is_suspect

        def _brpop_read(self, **options: Any) -> Any:
            try:
                return super()._brpop_read(**options)
            except EXPECTED:
                raise
            except Exception as error:
                on_garbage("message", error)
                return True

    class Transport(stock.Transport):  # type: ignore[misc]
        """Drops what is JSON, but not what belongs there."""

        def _deliver(self, message: Any, source: str) -> None:
            if source == queue and not is_wake_up(message):
                on_garbage("message", ValueError("not the message of a batch"))
                return
            try:
                super()._deliver(message, source)
            except EXPECTED:
                raise
            except Exception as error:
                on_garbage("message" if source == queue else "remote_command", error)

    Transport.Channel = Channel
    for alias in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[alias] = lambda: Transport


def is_wake_up(message: Any) -> bool:
    """Whether a decoded message names our task and a batch."""
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict) or headers.get("task") != BATCH_TASK:
        return False
    batch_id = headers.get("id")
    return isinstance(batch_id, str) and ids.is_well_formed(batch_id)
