"""Ids of batches and jobs: unguessable, and verifiable with the pool's secret.

A batch id is 24 bytes in URL-safe base64 (32 characters): accepted-at in ms since the epoch (6 bytes), number
of jobs (2), random (10), keyed BLAKE2b of all before it (6). So a foreign id is distinguished from an id with an
expired outcome, without a list of either. A job id is `<batch id>.<index>`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass

BATCH_ID_LENGTH = 32
MAC_BYTES = 6


@dataclass(frozen=True, slots=True)
class JobRef:
    """A reference to a job: its batch and its index in that batch."""

    batch_id: str
    index: int


class IdSigner:
    """Creates batch ids and verifies them.

    Args:
        secret: The pool's secret, 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new_batch_id(self, accepted_at_ms: float, n_jobs: int) -> str:
        """Create an id for a batch of `n_jobs` (at most 65,535) accepted at `accepted_at_ms`."""
        payload = int(accepted_at_ms).to_bytes(6, "big") + n_jobs.to_bytes(2, "big") + os.urandom(10)
        return base64.urlsafe_b64encode(payload + self._mac(payload)).decode()

    def parse_job_id(self, job_id: str) -> JobRef | None:
        """Split a job id, or return None if this pool cannot have created it."""
        batch_id, dot, text = job_id.partition(".")
        if not (dot and text.isascii() and text.isdigit() and len(text) <= 5):
            return None
        index, payload = int(text), self._verified(batch_id)
        if str(index) != text or payload is None or index >= int.from_bytes(payload[6:8], "big"):
            return None
        return JobRef(batch_id, index)

    def is_own(self, batch_id: str) -> bool:
        """Whether this pool created the id."""
        return self._verified(batch_id) is not None

    def _verified(self, batch_id: str) -> bytes | None:
        """The payload of a batch id; None if this pool did not sign it."""
        if len(batch_id) != BATCH_ID_LENGTH:
            return None
        try:
            raw = base64.urlsafe_b64decode(batch_id.encode())
        except (binascii.Error, UnicodeEncodeError):
            return None
        # Base64 decoding is lenient: two spellings of the same bytes would be one id here but two keys in Redis.
        if base64.urlsafe_b64encode(raw) != batch_id.encode():
            return None
        payload = raw[:-MAC_BYTES]
        return payload if hmac.compare_digest(raw[-MAC_BYTES:], self._mac(payload)) else None

    def _mac(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, key=self._secret, digest_size=MAC_BYTES).digest()


def is_well_formed(batch_id: str) -> bool:
    """Whether `accepted_at_ms` and `n_jobs` can be read from the id; the signature is not verified."""
    return re.fullmatch(r"[A-Za-z0-9_-]{32}", batch_id, re.ASCII) is not None


def job_id(batch_id: str, index: int) -> str:
    """Id of the job at `index` of a batch."""
    return f"{batch_id}.{index}"


def accepted_at_ms(batch_id: str) -> int:
    """When the batch was accepted, in ms since the epoch by Redis's clock."""
    return int.from_bytes(base64.urlsafe_b64decode(batch_id[:8]), "big")


def n_jobs(batch_id: str) -> int:
    """Number of jobs of a batch."""
    return int.from_bytes(base64.urlsafe_b64decode(batch_id[8:12])[:2], "big")
