"""The connection to Redis that every batch goes through: accepted on it, and heard of on it.

redis-py opens it (URL, password, TLS) and hands over its transport, as its own way costs each call and each notice
several times what the rest of a batch does. What is not done for every batch goes through redis-py. Calls are
answered in their order; RESP3 tells what was published from answers, so both share the connection.
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
from app.redis.script import Call, LargeField, Value
from app.redis.script_connection import evalsha, pack

logger = logging.getLogger(__name__)
RECONNECT_S = 0.1  # and at most `LOOK_S` after the loss
SILENCE_S = 1.0
LOOK_S = 0.25

Done = Callable[[Any], None]
_INCOMPLETE = object()


class RedisLink(asyncio.Protocol):
    """One connection, made anew whenever it is lost.

    Args:
        client: redis-py's client, whose pool knows how to connect.
        channels: What to subscribe to.
        hear: Called with the channel and the data of everything that is published there.
        timeout_s: Seconds after which a call has failed, and the connection with it.

    Attributes:
        refusal: What Redis said to what it refused last, until it takes commands again. Each refusal ends the
            connection: the next one may lead to another server, and authenticates anew.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        channels: Sequence[str],
        hear: Callable[[bytes, bytes], None],
        timeout_s: float,
    ) -> None:
        self._pool = client.connection_pool
        self._channels = channels
        self._hear = hear
        self._timeout_s = timeout_s
        self._connection: redis.asyncio.Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._calls: deque[tuple[Done, float]] = deque()
        self._heard_at_s = 0.0
        self.refusal = ""

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
            await self._close()

    async def connect(self) -> None:
        """Connect.

        Raises:
            RedisError, OSError: Redis does not answer, or does not let this user in.
        """
        await self._close()
        connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_INCOMPLETE)
        self._heard_at_s = time.monotonic()
        transport = connection._writer.transport
        transport.set_protocol(self)
        # Written at once rather than at the end of the event loop's turn: a worker waits for it.
        transport.set_write_buffer_limits(0)
        transport.write(pack("SUBSCRIBE", *self._channels))
        self._transport = transport
        self._probe()

    def call(self, done: Done, *words: Value, timeout_s: float | None = None) -> None:
        """Send a command; `done` is called with the answer, or with the `RedisError` there was instead."""
        if self._transport is None or self._transport.is_closing():
            done(RedisConnectionError("not connected"))
            return
        self._calls.append((done, time.monotonic() + (timeout_s or self._timeout_s)))
        self._transport.write(pack(*words))

    def run_script(self, done: Done, call: Call) -> None:
        """Run a script as `call` does a command."""
        self.call(self._unless_unknown(done, call), *evalsha(call))

    def store_and_run(self, done: Done, large: LargeField, call: Call) -> None:
        """Run a script in a transaction that writes a large field first: both happen, or neither."""
        refusals: list[RedisError] = []

        def queued(reply: Any) -> None:
            if isinstance(reply, RedisError):
                refusals.append(reply)

        def executed(reply: Any) -> None:
            answered(refusals[0] if refusals else reply[-1] if isinstance(reply, list) else reply)

        answered = self._unless_unknown(done, call)
        transport = self._transport
        if transport is None or transport.is_closing():
            done(RedisConnectionError("not connected"))
            return
        until_s = time.monotonic() + self._timeout_s
        self._calls.extend([(queued, until_s)] * 4)
        self._calls.append((executed, until_s))
        expire, run = pack("PEXPIRE", large.key, large.ttl_ms), pack(*evalsha(call))
        store = pack("HSET", large.key, large.name, b"")[: -len(b"$0\r\n\r\n")]
        start = b"%b%b$%d\r\n" % (_MULTI, store, len(large.value))
        # Not packed into one: the value is large.
        transport.writelines([start, large.value, b"\r\n" + expire + run + _EXEC])

    def data_received(self, data: bytes) -> None:
        """Called for each read."""
        self._heard_at_s = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _INCOMPLETE:
            try:
                self._take(reply)
            except Exception:
                logger.exception("an answer of Redis could not be taken in")

    def connection_lost(self, _: Exception | None) -> None:
        """Called at the end: whatever was not answered has failed."""
        self._transport = None
        self._fail_all(RedisConnectionError("the connection was lost"))

    def _unless_unknown(self, done: Done, call: Call) -> Done:
        def answered(reply: Any) -> None:
            if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
                self.call(done, "EVAL", call.script.source, len(call.keys), *call.keys, *call.args)
            else:
                done(reply)

        return answered

    def _take(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            if reply[0] == b"message":
                self._hear(reply[1], reply[2])
            return
        if self._calls:
            self._calls.popleft()[0](reply)
        if isinstance(reply, ResponseError) and (said := refusal(reply)):
            self._note_refusal(said)
            if self._transport:
                self._transport.abort()

    def _note_refusal(self, said: str) -> None:
        if said and said != self.refusal:
            logger.error(
                "Redis refuses to store jobs and tell of outcomes (%s); trying until it does not", said
            )
        self.refusal = said

    def _probe(self) -> None:
        """Ask for what the ledger's scripts ask for; a refusal to subscribe comes first, and is taken for its own."""
        self.call(self._probed, "EVAL", *PROBE, timeout_s=SILENCE_S)

    def _probed(self, reply: Any) -> None:
        if self.refusal and not isinstance(reply, Exception):
            logger.info("Redis takes jobs again")
            self.refusal = ""

    def _look(self) -> None:
        """Notice a connection that is only cut off: it does not answer in time, be it a probe."""
        now_s = time.monotonic()
        if self._transport is None:
            return
        if self._calls and self._calls[0][1] < now_s:
            self._transport.abort()
            self._fail_all(RedisTimeoutError("no answer in time"))
        elif not self._calls and now_s - self._heard_at_s > SILENCE_S:
            self._probe()

    def _fail_all(self, error: RedisError) -> None:
        calls, self._calls = self._calls, deque()
        for done, _ in calls:
            done(error)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)


_MULTI, _EXEC = pack("MULTI"), pack("EXEC")
