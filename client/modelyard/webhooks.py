"""Signs and verifies webhooks, as Standard Webhooks says (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

import msgspec

from modelyard.client_errors import AnswerUnreadableError, WebhookInvalidError
from modelyard.decoders import decoder
from modelyard.errors import ConfigurationError
from modelyard.schemas import Job

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64
TOLERANCE_S = 300.0
VERSION = "v1,"


def signing_keys(secrets: str) -> list[bytes]:
    """The keys of one or several secrets, separated by commas or white space.

    Raises:
        ConfigurationError: One is malformed.
    """
    keys: list[bytes] = []
    for secret in secrets.replace(",", " ").split():
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
            raise ConfigurationError(
                f"a webhook secret is malformed; expected {PREFIX} and {LEAST_BYTES} to {MOST_BYTES} random bytes in "
                f"base64: printf '{PREFIX}%s' \"$(openssl rand -base64 32)\""
            )
        keys.append(key)
    return keys


def sign(keys: Sequence[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The headers of a webhook: its id, its time, and its signature by each key."""
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(_signature(key, webhook_id, str(timestamp_s), body) for key in keys),
    }


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance_s: float = TOLERANCE_S
) -> Job:
    """Verify a webhook and read its job.

    A job may be delivered more than once: its id tells a repetition.

    Args:
        secret: The controller's `MODELYARD_WEBHOOK_SECRET`; several, separated by commas, while it is replaced.
        headers: Headers of the request, in any case.
        body: Its body as it arrived, before it is parsed.
        tolerance_s: How far its time may be from this machine's, in seconds.

    Raises:
        WebhookInvalidError: It is not from the controller, was changed on the way, or is too old.
        ConfigurationError: The secret is malformed.
        AnswerUnreadableError: The body is not a job.
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    webhook_id, sent_at = by_name.get("webhook-id", ""), by_name.get("webhook-timestamp", "")
    if not webhook_id or not (sent_at.isascii() and sent_at.isdigit()):
        raise WebhookInvalidError("the request has no webhook-id and webhook-timestamp; it is no webhook")
    given = by_name.get("webhook-signature", "").split()
    expected = [_signature(key, webhook_id, sent_at, body) for key in signing_keys(secret)]
    if not any(hmac.compare_digest(one.encode(), other.encode()) for one in expected for other in given):
        raise WebhookInvalidError(
            "no signature of the webhook is by this secret; compare it with the controller's MODELYARD_WEBHOOK_SECRET, "
            "and give the body as it arrived"
        )
    if abs(time.time() - int(sent_at)) > tolerance_s:
        raise WebhookInvalidError(
            f"the webhook was sent more than {tolerance_s:g} s ago, or the clocks differ; it may be a replay"
        )
    try:
        return decoder(Job).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnswerUnreadableError(f"the webhook's body is not a job: {error}") from None


def _signature(key: bytes, webhook_id: str, sent_at: str, body: bytes) -> str:
    signed = b".".join((webhook_id.encode(), sent_at.encode(), body))
    return VERSION + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
