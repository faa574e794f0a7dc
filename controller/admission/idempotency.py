"""Idempotency keys: a repeated POST with the same key is answered with the job of the first POST.

Redis holds one of two values under a key:

| value | meaning | lifetime |
| --- | --- | --- |
| `<token>:<digest of the request>:` | a POST holds the key until its job is accepted or refused | a lease of seconds |
| `<digest of the request>:<job id>` | the key refers to this job | retention |

The script that accepts the job replaces the first value by the second, and refuses the job if it finds another value:
see `app.ledger`. So a lease may expire, or a key may be released, even while a command is still in transit to Redis.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import Call, load, run
from app.server_errors import (
    IdempotencyConflictError,
    IdempotencyPendingError,
    LedgerUnavailableError,
    ParameterError,
)
from app.settings import ControllerSettings

MAX_KEY_BYTES = 255
# Many times the duration of accepting a job. The keys of a controller that dies in between stay reserved as long.
LEASE_S = 3.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An idempotency key that a POST has reserved.

    Attributes:
        name: Redis key.
        digest: Digest of everything that identifies a repeated request.
        token: Unique to this POST.
    """

    name: str
    digest: str
    token: str

    @property
    def fence(self) -> str:
        """The value in Redis until the job is accepted."""
        return f"{self.token}:{self.digest}:"

    def value(self, job_id: str) -> str:
        """The value in Redis after the job is accepted."""
        return f"{self.digest}:{job_id}"


class Idempotency:
    """Reserves idempotency keys.

    Args:
        client: Asynchronous Redis client that returns bytes.
        settings: Contains the maximum time that a job is held before it is sent.
    """

    def __init__(self, client: AsyncClient, settings: ControllerSettings) -> None:
        self._client = client
        hold_ms = max(settings.batch_hold_ms, settings.batch_hold_behind_ms)
        self._lease_ms = int(LEASE_S * 1000 + hold_ms)

    def entry(self, key: bytes, request: Iterable[bytes], owner: str) -> Reservation:
        """Build the reservation for a request; it is not made yet.

        Args:
            key: The idempotency key.
            request: The parts that identify the request.
            owner: Owner of the job; the same idempotency key of another owner is a different key.

        Raises:
            ParameterError: The idempotency key is empty or too long.
        """
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise ParameterError(f"Idempotency-Key must have 1 to {MAX_KEY_BYTES} characters")
        name = keys.once(blake2b(key, digest_size=16, key=owner.encode()).hexdigest())
        digest = blake2b(digest_size=16)
        for part in request:
            digest.update(part)
        return Reservation(name, digest.hexdigest(), secrets.token_hex(8))

    async def reserve(self, once: Reservation) -> str | None:
        """Reserve the key for a new job, or return the id of the existing job.

        Raises:
            IdempotencyConflictError: The key belongs to another request.
            IdempotencyPendingError: Another POST holds it.
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(once.name, once.fence, nx=True, px=self._lease_ms)
            pipe.get(once.name)
            taken, kept = await pipe.execute(raise_on_error=False)
            if kept is None and isinstance(taken, Exception):
                raise taken  # Redis is full: it cannot accept a new job, but an old job can be returned
            if isinstance(kept, Exception):
                raise kept
            if taken is True:
                return None
            stored = cast(bytes | None, kept) or once.fence.encode()  # released in between
        *_, digest, job_id = stored.decode().split(":")
        if digest != once.digest:
            raise IdempotencyConflictError(
                "this Idempotency-Key was used for a different request; choose a new one"
            )
        if not job_id:
            raise IdempotencyPendingError(
                "another request with this Idempotency-Key is being accepted; send it again",
                retry_after_s=1,
            )
        return job_id

    async def release(self, once: Reservation) -> None:
        """Release the key if no job was accepted under it; best effort, because its lease expires."""
        with suppress(LedgerUnavailableError), ledger_errors():
            await run(self._client, Call(load("release_once"), [once.name], [once.fence]))
