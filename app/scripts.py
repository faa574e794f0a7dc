"""Scripts over a connection of their own, without redis-py's layers around each call: a third of the CPU time.

What a client retries is retried here, too, by the connection's own rules; so a script may be sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError

Value = str | bytes | memoryview | int | float


class ScriptConnection:
    """One connection, for one thread. Connects on first use, and again after each loss.

    Args:
        client: Synchronous client, whose pool gives the connection.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """What a script answers, as bytes. A loss is retried.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        call = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return self._ask_until_answered(*call)
        except NoScriptError:
            self._ask_until_answered("SCRIPT", "LOAD", script.script)
            return self._ask_until_answered(*call)

    def command(self, *command: Value) -> Any:
        """What a command answers, as bytes. A loss is retried.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        return self._ask_until_answered(*command)

    def ask(self, *command: Value, within_s: float | None = None) -> Any:
        """What a command answers, asked once.

        Args:
            within_s: Seconds after which it has failed, where not as for every command of the connection.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        if self._connection is None:
            self._connection = self._pool.get_connection()
        self._connection.send_command(*command)  # connects where need be; every error disconnects
        if within_s is None:
            return self._connection.read_response()
        return self._connection.read_response(timeout=within_s)

    def _ask_until_answered(self, *command: Value) -> Any:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        return self._connection.retry.call_with_retry(lambda: self.ask(*command), self._drop)

    def _drop(self, _: Exception) -> None:
        self._connection.disconnect()
