"""The connection to Redis on which all batches are accepted and all outcomes are received.

A shortcut around redis-py, which opens the connection (URL, password, TLS) and then provides its transport.

Saves: for each call and notice, redis-py's layers cost several times as much as the rest of a batch.
Relies on: `Connection._writer.transport` of redis-py, and hiredis' `pack_command`, `Reader` and `PushNotification`.
Breaks if: redis-py stops using asyncio's streams, or hiredis changes these names; `tests/app/redis/test_link.py` fails.
Switch off: there is no setting; a `pubsub()` and `evalsha()` of redis-py's client do the same.

Rare commands go through redis-py. Calls are answered in order; RESP3 distinguishes published messages from replies, so
both share the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.redis.refusals import PROBE, refusal
from app.redis.script import Call, LargeFields, Value, pack

logger = logging.getLogger(__name__)
RECONNECT_S = 0.1  # and at most `LOOK_S` after the loss
SILENCE_S = 1.0
LOOK_S = 0.25
UNFINISHED_TTL_MS = 60_000  # of large fields whose script has not run yet

Done = Callable[..., None]  # called with the arguments that were given with it and, last, the answer
_INCOMPLETE = object()


class RedisLink(asyncio.Protocol):
    """One connection, reopened whenever it is lost.

    Args:
        client: redis-py's client, whose pool knows how to connect.
        timeout_s: Seconds after which a call fails and the connection is closed.
        on_changes: Called with keys that have changed since they were asked about, or with None if any may have; see
            `key_watch`. The connection is then only for that.

    Attributes:
        refusal: Redis's last refusal, until it accepts commands again. Each refusal ends the connection: the next one
            may reach another server, and authenticates again.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        timeout_s: float,
        on_changes: Callable[[Sequence[bytes] | None], None] | None = None,
    ) -> None:
        self._on_changes = on_changes
        self._pool = client.connection_pool
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._timeout_s = timeout_s
        self._connection: redis.asyncio.Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._calls: deque[tuple[Done, tuple[Any, ...], float]] = deque()
        self._heard_at_s = 0.0
        self.refusal = ""

    def listen(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Register `hear` for all data published on a channel; to be called before `connect`."""
        self._listeners[channel.encode()] = hear

    @property
    def is_connected(self) -> bool:
        """Whether batches can be stored now."""
        return self._transport is not None and not self.refusal

    async def run(self) -> None:
        """Keep connected until cancelled."""
        try:
            while True:
                if self._transport is None:
                    try:
                        await self.connect()
                    except (RedisError, OSError) as error:
                        self._note_refusal(refusal(error))
                await asyncio.sleep(LOOK_S if self._transport else RECONNECT_S)
                self._look()
        finally:
            await self.close()

    async def connect(self) -> None:
        """Connect.

        Raises:
            RedisError, OSError: Redis does not answer, or does not let this user in.
        """
        await self.close()
        connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_INCOMPLETE)
        self._heard_at_s = time.monotonic()
        transport = connection._writer.transport
        transport.set_protocol(self)
        # Written immediately instead of at the end of the loop iteration: a worker waits for it.
        transport.set_write_buffer_limits(0)
        if self._listeners:
            transport.write(pack("SUBSCRIBE", *self._listeners))
        self._transport = transport
        if self._on_changes:
            self.call(_ignored, "CLIENT", "TRACKING", "ON", "OPTIN")
        self._probe()

    def call(self, done: Done, *words: Value, timeout_s: float | None = None) -> None:
        """Send a command; `done` is called with the reply or the `RedisError`."""
        self._send(pack(*words), done, (), timeout_s or self._timeout_s)

    def run_script(self, call: Call, done: Done, *args: Any) -> None:
        """Run a script; `done` is called with `args` and, last, the reply or the `RedisError`."""
        self._send(call.packed(), self._answered, (call, done, args), self._timeout_s)

    def store_and_run(self, large: LargeFields, call: Call, done: Done, *args: Any) -> None:
        """Run a script in a transaction that writes the last of some large fields: both happen, or neither.

        Each field is written after the answer to the one before, so that other calls pass in between. If one is
        refused, or the connection is lost, the script does not run.
        """
        self._store(large, 0, call, done, args)

    def _store(self, large: LargeFields, index: int, call: Call, done: Done, args: tuple[Any, ...]) -> None:
        name, value = large.fields[index]
        if index < len(large.fields) - 1:
            transaction = _Transaction(self._stored, (large, index + 1, call, done, args))
            rest = [pack("PEXPIRE", large.key, UNFINISHED_TTL_MS)]
        else:
            transaction = _Transaction(self._answered, (call, done, args))
            rest = [pack("PEXPIRE", large.key, large.ttl_ms), call.packed()]
        store = pack("HSET", large.key, name, b"")[: -len(b"$0\r\n\r\n")]
        start = b"%b%b$%d\r\n" % (_MULTI, store, len(value))
        if not self._send(start, transaction.queued, (), self._timeout_s):
            return
        until_s = time.monotonic() + self._timeout_s
        self._calls.extend([(transaction.queued, (), until_s)] * (1 + len(rest)))
        self._calls.append((transaction.executed, (), until_s))
        assert self._transport
        # Not packed into one: the value is large.
        self._transport.writelines([value, b"\r\n" + b"".join(rest) + _EXEC])

    def _stored(
        self, large: LargeFields, index: int, call: Call, done: Done, args: tuple[Any, ...], reply: Any
    ) -> None:
        if isinstance(reply, RedisError):
            self.call(_ignored, "DEL", large.key)  # what a full Redis took of it
            done(*args, reply)
        else:
            self._store(large, index, call, done, args)

    def data_received(self, data: bytes) -> None:
        """Called for each read."""
        self._heard_at_s = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _INCOMPLETE:
            try:
                if isinstance(reply, hiredis.PushNotification):
                    if reply[0] == b"message":
                        self._listeners[reply[1]](reply[2])
                    elif reply[0] == b"invalidate" and self._on_changes:
                        self._on_changes(reply[1])
                    continue
                if self._calls:
                    done, args, _ = self._calls.popleft()
                    done(*args, reply)
                if isinstance(reply, ResponseError):
                    self._end_if_refused(reply)
            except Exception:
                logger.exception("an answer of Redis could not be processed")

    def connection_lost(self, _: Exception | None) -> None:
        """Fail all unanswered calls; called by asyncio."""
        self._transport = None
        self._fail_all(RedisConnectionError("the connection was lost"))
        if self._on_changes:
            self._on_changes(None)

    def _send(self, packed: bytes, done: Done, args: tuple[Any, ...], timeout_s: float) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():
            done(*args, RedisConnectionError("not connected"))
            return False
        self._calls.append((done, args, time.monotonic() + timeout_s))
        transport.write(packed)
        return True

    def _answered(self, call: Call, done: Done, args: tuple[Any, ...], reply: Any) -> None:
        """Pass on the reply of a script; a script unknown to Redis is sent again in full."""
        if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
            self._send(call.packed("EVAL"), done, args, self._timeout_s)
        else:
            done(*args, reply)

    def _end_if_refused(self, error: ResponseError) -> None:
        said = refusal(error)
        if self._on_changes and said.startswith("NOPERM"):
            return  # a user who may not track keys: the same answer would follow on every connection
        if said:
            self._note_refusal(said)
            if self._transport:
                self._transport.abort()

    def _note_refusal(self, said: str) -> None:
        if said and said != self.refusal and not self._on_changes:  # a watch is refused together with a link
            logger.error("Redis refuses jobs and subscriptions (%s); retrying", said)
        self.refusal = said

    def _probe(self) -> None:
        """Send a command that Redis refuses if it would refuse the ledger's scripts."""
        self.call(self._probed, "EVAL", *PROBE, timeout_s=SILENCE_S)

    def _probed(self, reply: Any) -> None:
        if self.refusal and not isinstance(reply, Exception):
            if not self._on_changes:
                logger.info("Redis accepts jobs again")
            self.refusal = ""

    def _look(self) -> None:
        """Detect a half-open connection: a call or a probe is not answered in time."""
        now_s = time.monotonic()
        if self._transport is None:
            return
        if self._calls and self._calls[0][2] < now_s:
            self._transport.abort()
            self._fail_all(RedisTimeoutError("no answer in time"))
        elif not self._calls and now_s - self._heard_at_s > SILENCE_S:
            self._probe()

    def _fail_all(self, error: RedisError) -> None:
        calls, self._calls = self._calls, deque()
        for done, args, _ in calls:
            done(*args, error)

    async def close(self) -> None:
        """Close the connection; unanswered calls fail."""
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)


def _ignored(_: object) -> None:
    """The reply to a command whose failure shows at the next one."""


class _Transaction:
    """The answers to a transaction: one to each of its commands, then one to all; `done` is called once."""

    def __init__(self, done: Done, args: tuple[Any, ...]) -> None:
        self._done = done
        self._args = args
        self._refusal: RedisError | None = None

    def queued(self, reply: Any) -> None:
        """A command was taken, or refused."""
        if isinstance(reply, RedisError):
            self._refusal = self._refusal or reply

    def executed(self, reply: Any) -> None:
        """The transaction is over."""
        last = reply[-1] if isinstance(reply, list) else reply
        self._done(*self._args, self._refusal or last)


_MULTI, _EXEC = pack("MULTI"), pack("EXEC")
