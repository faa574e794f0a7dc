"""Webhooks are signed and verified as Standard Webhooks says."""

from __future__ import annotations

import base64
import time

import pytest

from modelyard import WebhookInvalidError, verify_webhook
from modelyard.errors import ConfigurationError
from modelyard.webhooks import sign, signing_keys

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
BODY = (
    b'{"id":"a.0","status":"succeeded","worker":1,"model_name":"M","model_version":1,"val_accuracy":null,'
    b'"policy":"forced","forced":true,"result_url":"/results/a.0"}'
)


def signed(secret: str = SECRET, sent_at_s: float | None = None, body: bytes = BODY) -> dict[str, str]:
    return sign(signing_keys(secret), "a-0", int(sent_at_s or time.time()), body)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of https://github.com/standard-webhooks/standard-webhooks."""
    keys = signing_keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_webhook_of_any_of_the_secrets_is_a_job_whatever_the_case_of_its_headers() -> None:
    headers = {name.title(): value for name, value in signed(f"{OTHER}, {SECRET}").items()}
    for secret in (SECRET, OTHER, f"{SECRET} {OTHER}"):
        assert verify_webhook(secret, headers, BODY).id == "a.0"


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        (signed(), BODY.replace(b"true", b"null"), "no signature"),
        (signed(OTHER), BODY, "no signature"),
        (signed() | {"webhook-id": "b-0"}, BODY, "no signature"),
        (signed() | {"webhook-timestamp": str(int(time.time()) + 1)}, BODY, "no signature"),
        (signed() | {"webhook-signature": "v1,é"}, BODY, "no signature"),
        (signed(sent_at_s=time.time() - 86_400), BODY, "replay"),
        (signed(sent_at_s=time.time() + 86_400), BODY, "replay"),
        ({}, BODY, "no webhook-id"),
    ],
)
def test_a_changed_old_or_foreign_request_is_no_webhook(
    headers: dict[str, str], body: bytes, why: str
) -> None:
    with pytest.raises(WebhookInvalidError, match=why):
        verify_webhook(SECRET, headers, body)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_kurz", "whsec_***", SECRET.removeprefix("whsec_")])
def test_a_malformed_secret_says_what_is_expected(secret: str) -> None:
    with pytest.raises((ConfigurationError, WebhookInvalidError), match=r"whsec_|secret"):
        verify_webhook(secret, signed(), BODY)
