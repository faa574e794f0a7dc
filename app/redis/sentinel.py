"""Finds the primary that Redis Sentinel names, and ends the connections to a former one.

A connection asks when it connects. Behind a planned failover the former primary still accepts writes for seconds, and
loses them. So long-lived processes also `watch`: they ask twice a second, and end every connection to a former primary
before the first one to the new primary is opened. No process writes to both.

Relies on: `_sock` of redis-py's connections, and `_writer` of its asynchronous ones: a connection is ended under its
user, without redis-py, whose connections belong to one thread.
Breaks if: redis-py renames them; `tests/app/redis/test_sentinel.py` fails.
Switch off: do not call `watch`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from app.redis import url as redis_url
from app.redis.url import Sentinels
from app.server_errors import first_line

logger = logging.getLogger(__name__)
TIMEOUT_S = 0.5
LOOK_S = 0.5
LEAST_PAUSE_S = 0.05  # between two questions, while connections fail
Address = tuple[str, int]


@cache
def primary(sentinels: Sentinels) -> Primary:
    """The one object of this process that knows the primary."""
    return Primary(sentinels)


def primary_of(url: str) -> Primary | None:
    """The primary of a URL that names Sentinels; None if it names a server.

    Raises:
        ConfigurationError: It is malformed.
    """
    found = redis_url.sentinels(url)
    return primary(found) if found else None


class NoPrimaryError(RedisConnectionError):
    """No Sentinel answers, or none knows the primary."""


class Primary:
    """The address of the primary, and the connections to it. Safe for threads."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._name = sentinels.name
        # A dead Sentinel is asked last.
        self._clients = [
            redis.Redis(
                host=host,
                port=port,
                decode_responses=True,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
                **dict(sentinels.options),  # type: ignore[arg-type]
            )
            for host, port in sentinels.addresses
        ]
        self._known: Address | None = None
        self._epoch = -1  # Sentinel's count of failovers
        self._is_watched = False
        self._wake = threading.Event()
        self._asking = threading.Lock()
        self._changing = threading.Lock()
        self._held: WeakSet[Any] = WeakSet()

    @property
    def watched(self) -> Address | None:
        """The address, if another thread keeps it up to date."""
        return self._known if self._is_watched else None

    def address(self) -> Address:
        """The address; asks the Sentinels unless it is watched.

        Raises:
            NoPrimaryError: No Sentinel knows it.
        """
        return self.watched or self._ask()

    def register(self, connection: Any, address: Address) -> None:
        """Register a new connection, to be ended by a failover.

        Raises:
            redis.ConnectionError: There is another primary by now.
        """
        with self._changing:
            if address != self._known:
                raise RedisConnectionError(f"{address[0]}:{address[1]} is not the primary any more")
            self._held.add(connection)

    def doubt(self) -> None:
        """Ask soon: a connection failed."""
        self._wake.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ask twice a second in a thread while the block runs."""
        closing = threading.Event()
        thread = threading.Thread(target=self._watch, args=(closing,), name="sentinel", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_watched = False
            closing.set()
            self._wake.set()
            thread.join()

    def _watch(self, closing: threading.Event) -> None:
        while not closing.wait(LEAST_PAUSE_S):
            try:
                self._ask()
                self._is_watched = True
            except NoPrimaryError as error:
                logger.debug("%s", error)
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _ask(self) -> Address:
        with self._asking:
            answers: list[tuple[int, Address]] = []
            problem = "no answer"
            for client in tuple(self._clients):
                try:
                    # The count first: an address newer than it is taken for an inconsistent answer, not the reverse.
                    state: Any = client.sentinel_master(self._name)
                    found: Any = client.sentinel_get_master_addr_by_name(self._name)
                except (RedisError, OSError) as error:
                    problem = first_line(error) or problem
                    self._clients.remove(client)
                    self._clients.append(client)
                    continue
                if found:
                    answer = int(state["config-epoch"]), (str(found[0]), int(found[1]))
                    # A Sentinel that was away answers with a former primary and a lower count.
                    if answer[0] > self._epoch or answer == (self._epoch, self._known):
                        return self._take(*answer)
                    answers.append(answer)
            # The Sentinels were set up anew.
            if len(answers) * 2 > len(self._clients):
                return self._take(*max(answers))
        raise NoPrimaryError(f"no Sentinel names the primary {self._name!r} ({problem})")

    def _take(self, epoch: int, address: Address) -> Address:
        with self._changing:
            former, self._known, self._epoch = self._known, address, epoch
            if former not in (None, address):
                logger.warning("Redis's primary is %s:%d now, no longer %s:%d", *address, *(former or ()))
                for connection in tuple(self._held):
                    connection.end()
                self._held.clear()
        return address


class _ToPrimary:
    """A connection to the present primary."""

    primary: Primary

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:  # type: ignore[attr-defined]
            return
        # Its retries would go to the same address; each retry of the caller asks again.
        address = self.primary.address()
        self.host, self.port = address
        try:
            super().connect_check_health(check_health, retry_socket_connect=False)  # type: ignore[misc]
            self.primary.register(self, address)
        except RedisError:
            self.disconnect()  # type: ignore[attr-defined]
            self.primary.doubt()
            raise

    def end(self) -> None:
        """Make every use fail, also one by another thread."""
        if connected := self._sock:  # type: ignore[attr-defined]
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # without the state of TLS


class _AsyncToPrimary:
    """The same, asynchronous."""

    primary: Primary
    _loop: asyncio.AbstractEventLoop

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        if self.is_connected:  # type: ignore[attr-defined]
            return
        self._loop = asyncio.get_running_loop()
        address = self.primary.watched
        if address is None:
            address = await asyncio.to_thread(self.primary.address)
        self.host, self.port = address
        try:
            await super().connect_check_health(check_health, retry_socket_connect=False)  # type: ignore[misc]
            self.primary.register(self, address)
        except RedisError:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            self.primary.doubt()
            raise

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """Send; on an ended connection uvloop raises an error that redis-py does not know."""
        try:
            await super().send_packed_command(*arguments, **options)  # type: ignore[misc]
        except RuntimeError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError("the connection to a former primary was ended") from error

    def end(self) -> None:
        """Make every use fail; called from any thread."""
        if writer := self._writer:  # type: ignore[attr-defined]
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(writer.transport.abort)


def to_primary(connection_class: type[Any], found: Primary | None) -> type[Any]:
    """The class of connections that go to the primary, wherever it is; the same class without Sentinels."""
    if found is None:
        return connection_class
    is_async = asyncio.iscoroutinefunction(connection_class.connect)
    mixin = _AsyncToPrimary if is_async else _ToPrimary
    return type(connection_class.__name__, (mixin, connection_class), {"primary": found})


@contextmanager
def watch(url: str) -> Iterator[None]:
    """Follow every failover at once while the block runs; does nothing if the URL names a server."""
    if found := primary_of(url):
        with found.watching():
            yield
    else:
        yield
