"""Runs scripts over a separate connection: a shortcut around redis-py's client.

Saves: two thirds of the CPU time of a call.
Relies on: `send_packed_command`, `read_response` and `retry` of redis-py's connections, which are public.
Breaks if: redis-py changes them; `tests/app/ledger/test_taking.py` fails.
Switch off: there is no setting; `app.redis.script.run_now` does the same.

A lost connection is retried as a redis-py client does, so a script may be sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from app.redis.client import ledger_error
from app.redis.script import Call, Value, pack


class ScriptConnection:
    """One connection, for one thread. Connects on first use, and again after each loss.

    Args:
        client: Synchronous client, whose pool gives the connection.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def run(self, call: Call) -> Any:
        """Run a script; returns its reply as bytes. A lost connection is retried.

        Raises:
            LedgerUnavailableError: Redis does not answer, or refuses.
            WireError: A key holds a value of another type.
        """
        try:
            return self._ask(call.packed())
        except NoScriptError:
            return self._ask(call.packed("EVAL"))

    def command(self, *words: Value) -> Any:
        """Send a command; returns its reply as bytes. A lost connection is retried.

        Raises:
            LedgerUnavailableError: Redis does not answer, or refuses.
        """
        return self._ask(pack(*words))

    def run_after(self, command: Sequence[Value], within_s: float, call: Call) -> Any:
        """Send a script together with a command, so that Redis runs it directly after that; returns the script's reply.

        After a lost connection the script is sent again without the command: it may have run before.

        Args:
            command: The first command; its reply or refusal is ignored.
            within_s: Maximum duration in seconds.

        Raises:
            LedgerUnavailableError: Redis does not answer, or refuses.
            WireError: A key holds a value of another type.
        """
        packed = pack(*command) + call.packed()
        try:
            connection = self._connected()
            connection.send_packed_command((packed,))  # connects if needed; every loss disconnects
            with suppress(ResponseError):
                connection.read_response(timeout=within_s)
            return connection.read_response()
        except (NoScriptError, RedisConnectionError):
            return self.run(call)
        except (RedisError, OSError) as error:
            raise ledger_error(error) from error

    def _ask(self, packed: bytes) -> Any:
        try:
            connection = self._connected()
            return connection.retry.call_with_retry(partial(_ask, connection, packed), connection.disconnect)
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise ledger_error(error) from error

    def _connected(self) -> Any:
        self._connection = self._connection or self._pool.get_connection()
        return self._connection


def _ask(connection: Any, packed: bytes) -> Any:
    connection.send_packed_command((packed,))
    return connection.read_response()
