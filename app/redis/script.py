"""Lua scripts: each is a file in `lua/`, and each use of one is a `Call` rendered by a typed function.

No other module contains Lua. A script begins with a header that names its KEYS, its ARGV and its reply; `-- include:
name` includes `lua/include/name.lua`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any

import hiredis
import redis
import redis.asyncio

Value = str | bytes | int | float
LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script and its digest in Redis."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys and arguments."""

    script: Script
    keys: list[str]
    args: list[Value]

    def packed(self, command: str = "EVALSHA") -> bytes:
        """The encoded command: with the script's digest, or with the whole script for `EVAL`."""
        script = self.script.sha if command == "EVALSHA" else self.script.source
        words = (command, script, len(self.keys), *self.keys, *self.args)
        packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub means tuples of one
        return packed


@dataclass(frozen=True, slots=True)
class LargeFields:
    """Fields of a hash that are written before a script runs: Lua would hash and copy them.

    Attributes:
        fields: Names and values; each is written by a transaction of its own, the last by the one that runs the script.
        ttl_ms: Time to live of the hash in milliseconds, from the last transaction on.
    """

    key: str
    fields: Sequence[tuple[str, bytes]]
    ttl_ms: int


@cache
def load(name: str) -> Script:
    """The script in `lua/<name>.lua`."""
    return Script(_with_includes((LUA / f"{name}.lua").read_text("utf-8"), set()))


def _with_includes(source: str, included: set[str]) -> str:
    def text(match: re.Match[str]) -> str:
        name = match[1]
        if name in included:
            return ""
        included.add(name)
        return _with_includes((LUA / "include" / f"{name}.lua").read_text("utf-8"), included)

    return _INCLUDE.sub(text, source)


async def run(client: redis.asyncio.Redis, call: Call) -> Any:
    """Run a script; returns its reply as bytes.

    Raises:
        redis.RedisError: Redis does not answer, or refuses.
    """
    return await client.register_script(call.script.source)(keys=call.keys, args=call.args)


def run_now(client: redis.Redis, call: Call) -> Any:
    """The same for a synchronous client."""
    return client.register_script(call.script.source)(keys=call.keys, args=call.args)


def pack(*words: Value) -> bytes:
    """Encode a command directly with hiredis: redis-py takes 17 µs more."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub means tuples of one
    return packed
