"""Idempotency keys: a repeated post with the same key is answered with the first post's job.

Redis holds `<digest of the request>:<job id>`; the job id is missing while the first post is being accepted,
and is written by the very script that accepts the job.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from typing import cast

import redis.asyncio

from app import keys
from app.errors import IdempotencyConflictError, LedgerUnavailableError, ParameterError
from app.ledger import ledger_errors

MAX_KEY_BYTES = 255
RESERVED_S = 60


# KEYS once; ARGV value without a job id. An accept whose confirmation was lost has written the job id: it stays.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Idempotency:
    """Reserves keys.

    Args:
        client: Asynchronous Redis client that answers bytes.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._release = client.register_script(_RELEASE)

    def entry(self, key: bytes, request: bytes, owner: str) -> tuple[str, str]:
        """Redis key, and value without the job id, of a request: all that makes it the same one again.

        Args:
            key: The idempotency key.
            request: What the request asks for.
            owner: Whose job it is to be; the same idempotency key of another is another one.

        Raises:
            ParameterError: The idempotency key is empty or too long.
        """
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise ParameterError(f"Idempotency-Key must have 1 to {MAX_KEY_BYTES} characters")
        digest = blake2b(request, digest_size=16).hexdigest()
        return keys.once(blake2b(key, digest_size=16, key=owner.encode()).hexdigest()), f"{digest}:"

    async def reserve(self, once: tuple[str, str]) -> str | None:
        """Take the key for a new job, or return the id of the job that it stands for.

        Raises:
            IdempotencyConflictError: The key stands for another request, or its job is being accepted.
            LedgerUnavailableError: Redis does not answer.
        """
        name, value = once
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(name, value, nx=True, ex=RESERVED_S)
            pipe.get(name)
            taken, kept = await pipe.execute(raise_on_error=False)
            if kept is None and isinstance(taken, Exception):
                raise taken  # Redis is full: a new job cannot be taken, an old one can be named
            if taken is True:
                return None
            stored = cast(bytes | None, kept) or value.encode()
        digest, _, job_id = stored.decode().partition(":")
        if f"{digest}:" != value:
            raise IdempotencyConflictError(
                "this Idempotency-Key was used for a different request; choose a new one"
            )
        if not job_id:
            raise IdempotencyConflictError(
                "the first request with this Idempotency-Key is being accepted; try again", retry_after_s=1
            )
        return job_id

    async def release(self, once: tuple[str, str]) -> None:
        """Give the key back where no job was accepted under it; best effort, as it lapses by itself."""
        with suppress(LedgerUnavailableError), ledger_errors():
            await self._release(keys=[once[0]], args=[once[1]])
