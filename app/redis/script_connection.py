"""Scripts over a connection of their own, without redis-py's layers around each call: a third of the CPU time.

What a client retries is retried here, too, by the connection's own rules; so a script may be sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
import redis
from redis.exceptions import NoScriptError, ResponseError

from app.redis.script import Call, Value


class ScriptConnection:
    """One connection, for one thread. Connects on first use, and again after each loss.

    Args:
        client: Synchronous client, whose pool gives the connection.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def run(self, call: Call) -> Any:
        """What a script answers, as bytes. A loss is retried.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        words = evalsha(call)
        try:
            return self.command(*words)
        except NoScriptError:
            self.command("SCRIPT", "LOAD", call.script.source)
            return self.command(*words)

    def command(self, *command: Value) -> Any:
        """What a command answers, as bytes. A loss is retried.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        connection = self._connected()

        def ask() -> Any:
            connection.send_packed_command((pack(*command),))
            return connection.read_response()

        return connection.retry.call_with_retry(ask, lambda _: connection.disconnect())

    def run_after(self, command: Sequence[Value], within_s: float, call: Call) -> Any:
        """What a script answers that is sent with a command, so that Redis runs it as soon as that has its answer.

        Args:
            command: Its answer, or refusal, is passed over.
            within_s: Seconds that it may take.

        Raises:
            redis.exceptions.NoScriptError: Redis has forgotten the script; `run` loads it.
            redis.RedisError: Redis does not answer, or refuses. Nothing is sent again.
        """
        connection = self._connected()
        packed = pack(*command) + pack(*evalsha(call))
        connection.send_packed_command((packed,))  # connects where need be; every loss disconnects
        with suppress(ResponseError):
            connection.read_response(timeout=within_s)
        return connection.read_response()

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        return self._connection


def pack(*words: Value) -> bytes:
    """A command as Redis reads it, by hiredis itself: by way of redis-py it takes 17 µs more."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub means tuples of one
    return packed


def evalsha(call: Call) -> tuple[Value, ...]:
    """The words of a script's call."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
