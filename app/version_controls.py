"""Operators' decisions about versions as they are stored in Redis: disabled, retired, pinned or scaled.

`controller.operate.controls` writes them. Workers and `modelyard up` read which versions are retired.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

import msgspec

from app.redis import keys

logger = logging.getLogger(__name__)
PIN = "pin:"  # begins the field of a model's pinned version; the other fields are queues
SCALE = "scale:"  # begins the field of the number of workers that an operator asked for, and a queue
State: TypeAlias = Literal["disabled", "retired", "pinned", "scaled"]


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision that is in force.

    Attributes:
        state: Of the version; `pinned` in the field of a model.
        version: The version.
        by: Name of the operator's API key; empty without keys.
        at_ms: Redis's clock.
        replicas: Workers of a scaled version, otherwise None. Older releases wrote 0, and read no null.
    """

    state: State
    version: int
    by: str
    reason: str
    at_ms: float
    replicas: int | None = None

    def __str__(self) -> str:
        """The decision, its author and its reason, for people."""
        by = f" by {self.by}" if self.by else ""
        to = f" to {self.replicas}" if self.replicas else ""
        return f"{self.state}{to}{by}{f': {self.reason}' if self.reason else ''}"


Table: TypeAlias = Mapping[str, Control]
"""Controls by field: a queue, `PIN` and a model, or `SCALE` and a queue."""
encode_control = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Control).decode


def read_table(raw: Mapping[bytes, bytes]) -> dict[str, Control]:
    """The controls in Redis; an unreadable one is logged and left out."""
    table = {}
    for field, value in raw.items():
        try:
            table[field.decode()] = _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning(
                "%s: the field %r cannot be read and has no effect: %s", keys.CONTROLS, field, error
            )
    return table


def scaled(table: Table) -> dict[str, Control]:
    """The numbers of workers that operators asked for, by queue."""
    return {field.removeprefix(SCALE): each for field, each in table.items() if field.startswith(SCALE)}


def retirement(redis: Any, queue: str) -> Control | None:
    """The decision that retired a version; None if it is in service.

    Args:
        redis: A synchronous Redis client.
    """
    raw = cast(bytes | None, redis.hget(keys.CONTROLS, queue))
    control = read_table({queue.encode(): raw}).get(queue) if raw else None
    return control if control and control.state == "retired" else None
