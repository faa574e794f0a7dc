"""kombu's Redis transport for a worker, hardened against invalid bytes on its queue and refused Redis commands.

Saves: kombu decodes a message inside Celery's event loop, where an unreadable one would end the worker; a half-open
connection would cost a timeout; and a full Redis would refuse a reconnect.
Relies on: the methods of kombu's `Channel` and `Transport` in `RELIES_ON`, some of them private. pyproject.toml
bounds kombu's version, and `use` checks the names.
Breaks if: kombu fetches messages in another way than BRPOP, or renames a method. The behaviour is tested in
`tests/workers`, by `consumer/test_unreadable_messages.py`, `test_cut_off.py` and `test_refusals.py`.
Switch off: remove the call of `use`; Celery then uses kombu's own transport.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty
from typing import Any

import kombu
from celery import Celery
from celery.app import amqp
from kombu.transport import redis as stock

from app.celery_app import BATCH_TASK, redis_credentials
from app.ledger import ids
from app.redis.client import OutOfMemoryError
from app.redis.refusals import PROBE, renewing
from app.redis.sentinel import Primary, to_primary
from app.unreadable import What

RELIES_ON = {
    stock.Channel: (
        *("_brpop_read", "_brpop_start", "_connparams", "_disconnect_pools", "_process_credential_provider"),
        *("_queue_bind", "_size", "async_pool", "conn_or_acquire", "pool"),
    ),
    stock.QoS: ("restore_visible",),
    stock.Transport: ("_deliver",),
    stock.MultiChannelPoller: ("_register",),
}
# Errors that the event loop handles itself: it reconnects or asks again. kombu treats KeyError as a lost connection;
# here it comes from a message with a missing member.
EXPECTED = tuple(
    error
    for error in (Empty, *stock.Transport.connection_errors, *stock.Transport.channel_errors)
    if not issubclass(error, LookupError)
)


@dataclass(frozen=True)
class Observer:
    """The interface between the transport and its worker.

    Attributes:
        queue: The worker's queue, which holds only wake-up messages.
        on_garbage: Called for each dropped message.
        on_asked: Called for each request for a message; an idle worker sends one every second.
        failed_heartbeats: Returns how many heartbeats failed: after each, these connections may be half-open as well.
        primary: Where to connect, if the URL names Sentinels.
    """

    queue: str
    on_garbage: Callable[[What, Exception], None]
    on_asked: Callable[[], None]
    failed_heartbeats: Callable[[], int]
    primary: Primary | None = None


def use(celery: Celery, observer: Observer) -> None:
    """Make an application's connections use this transport; one worker per process.

    Raises:
        RuntimeError: This kombu version lacks a method that the transport relies on.
    """
    missing = [name for owner, names in RELIES_ON.items() for name in names if not hasattr(owner, name)]
    if missing:
        raise RuntimeError(f"kombu's Redis transport has no {', '.join(missing)}; install kombu>=5.7,<5.8")
    Channel.observer = Transport.observer = observer
    celery.amqp_cls = AMQP


class QoS(stock.QoS):  # type: ignore[misc]
    """Restores no messages, because none are acknowledged. kombu's lock is a write, which a full Redis refuses."""

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Do nothing. kombu calls it every ten seconds."""


class Channel(stock.Channel):  # type: ignore[misc]
    """Drops messages that are not JSON, and connections that may be half-open: detecting one costs a timeout."""

    QoS = QoS
    observer: Observer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._heard_failures = dict.fromkeys(("pool", "async_pool"), self.observer.failed_heartbeats())
        super().__init__(*arguments, **options)
        try:
            self.client.eval(*PROBE)  # Redis has answered a ping, but may still refuse writes
        except Exception:
            self._disconnect_pools()
            raise

    def _size(self, name: str) -> int:
        # kombu asks in a transaction, in which a full Redis refuses even reads.
        with self.conn_or_acquire() as client:
            return int(client.llen(name))

    def _queue_bind(self, *arguments: Any) -> None:
        # Only kombu's own producers read bindings, and the controller does not use them.
        with suppress(OutOfMemoryError):
            super()._queue_bind(*arguments)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        self._process_credential_provider(redis_credentials(), parameters)
        connection_class = to_primary(renewing(parameters["connection_class"]), self.observer.primary)
        return parameters | {"connection_class": connection_class}

    def _brpop_start(self, *arguments: Any) -> None:
        self.observer.on_asked()
        if self._drop_suspects("async_pool"):
            self.connection.cycle._register(self, self.client, "BRPOP")  # its new socket
        super()._brpop_start(*arguments)

    def conn_or_acquire(self, *arguments: Any, **options: Any) -> Any:
        """A connection from the pool. kombu calls it for each command that does not block."""
        self._drop_suspects("pool")
        return super().conn_or_acquire(*arguments, **options)

    def _drop_suspects(self, pool: str) -> bool:
        # Each pool is dropped when it is next used: the consuming connection must not be dropped with a reply pending.
        now = self.observer.failed_heartbeats()
        is_suspect, self._heard_failures[pool] = now != self._heard_failures[pool], now
        if is_suspect:
            getattr(self, pool).disconnect()
        return is_suspect

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except EXPECTED:
            raise
        except Exception as error:
            self.observer.on_garbage("message", error)
            return True


class Transport(stock.Transport):  # type: ignore[misc]
    """Drops JSON messages that are not wake-up messages."""

    Channel = Channel
    observer: Observer

    def _deliver(self, message: Any, source: str) -> None:
        is_of_queue = source == self.observer.queue
        if is_of_queue and not is_wake_up(message):
            self.observer.on_garbage("message", ValueError("not the message of a batch"))
            return
        try:
            super()._deliver(message, source)
        except EXPECTED:
            raise
        except Exception as error:
            self.observer.on_garbage("message" if is_of_queue else "remote_command", error)


class Connection(kombu.Connection):  # type: ignore[misc]
    """Takes this transport for every URL; the setting `broker_transport` does not work for Unix sockets."""

    def get_transport_cls(self) -> type[Transport]:
        """This transport. kombu calls it for each new connection."""
        return Transport


class AMQP(amqp.AMQP):  # type: ignore[misc]
    """Makes a Celery application create connections of this class."""

    Connection = Connection


def is_wake_up(message: Any) -> bool:
    """Whether a decoded message names the batch task and a batch id."""
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict) or headers.get("task") != BATCH_TASK:
        return False
    batch_id = headers.get("id")
    return isinstance(batch_id, str) and ids.is_well_formed(batch_id)
