"""Why wanted versions have no ready worker, as stored in Redis for `/workers` and the metrics.

Who starts workers writes it again each heartbeat: `modelyard up`, and the serving worker of an alias follower. So it
expires soon after nobody wants the version any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from app.redis import keys
from app.worker_record import assign_number
from modelyard.schemas import StartFailure

LIVES_MS = 10_000
LONGEST_REASON = 1000


class _Entry(msgspec.Struct, frozen=True):
    """A failure in Redis.

    Attributes:
        since_ms: When the first start failed, Unix time.
        until_ms: When it expires, Redis's clock.
    """

    reason: str
    since_ms: float
    until_ms: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Entry).decode


def write(redis: Any, failures: Mapping[str, StartFailure], over: Iterable[str], now_ms: float) -> None:
    """Write failures again, and give their queues worker numbers, by which they are listed.

    Args:
        redis: A synchronous Redis client.
        failures: Failures by queue.
        over: Queues whose failures are over.
        now_ms: Time by Redis's clock.

    Raises:
        RedisError: Redis does not answer or refuses the write.
    """
    for queue in failures:
        assign_number(redis, queue, None)
    pipe = redis.pipeline()
    for queue, each in failures.items():
        entry = _Entry(each.reason[:LONGEST_REASON], each.since_ms, now_ms + LIVES_MS)
        pipe.hset(keys.START_FAILURES, queue, _encode(entry))
    for queue in over:
        pipe.hdel(keys.START_FAILURES, queue)
    pipe.pexpire(keys.START_FAILURES, LIVES_MS)
    pipe.execute()


def read(raw: Mapping[bytes, bytes], now_ms: float) -> dict[str, StartFailure]:
    """The failures in Redis, by queue, without those that have expired or are of another release."""
    found = {}
    for field, value in raw.items():
        try:
            queue, entry = field.decode(), _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if keys.is_queue(queue) and entry.until_ms > now_ms:
            found[queue] = StartFailure(entry.reason, entry.since_ms)
    return found
