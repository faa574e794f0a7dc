"""`POST /registry/webhook` refuses what MLflow has not signed recently; `test_alias_watch.py` has a real event."""

from __future__ import annotations

import hashlib
import hmac
import time
from base64 import b64encode

import httpx
import redis

from app.api_keys import new_key
from app.redis import keys
from tests.controller.conftest import Serve, Served

SECRET = "of MLflow's webhook"
EVENT = b'{"entity": "model_version", "action": "created", "data": {"name": "digits", "version": "3"}}'


async def send(served: Served, body: bytes = EVENT, age_s: float = 0, secret: str = SECRET) -> httpx.Response:
    """Signed as MLflow signs."""
    sent_at = str(int(time.time() - age_s))
    signature = hmac.digest(secret.encode(), b"one.%b.%b" % (sent_at.encode(), body), hashlib.sha256)
    headers = {
        "X-MLflow-Delivery-Id": "one",
        "X-MLflow-Timestamp": sent_at,
        "X-MLflow-Signature": f"v1,{b64encode(signature).decode()}",
    }
    return await served.http.post("/registry/webhook", content=body, headers=headers)


async def test_a_signed_event_reaches_every_process_without_an_api_key(
    serve: Serve, client: redis.Redis
) -> None:
    _, made = new_key("ann", "operate")
    served = await serve(registry_webhook_secret=SECRET, api_keys=made.line())
    with client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(keys.REGISTRY_CHANNEL)
        channel.get_message(timeout=5)
        answer = await send(served)
        assert (answer.status_code, answer.content) == (204, b"")
        message = channel.get_message(timeout=5)
        assert message
        assert message["data"] == b"digits"


async def test_events_that_are_not_signed_or_old_or_about_nothing_are_refused(serve: Serve) -> None:
    served = await serve(registry_webhook_secret=SECRET)
    for answer in (
        await send(served, secret="another"),
        await send(served, age_s=600),
        await send(served, body=b"[]"),
        await served.http.post("/registry/webhook", content=EVENT),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "registry_webhook_invalid")
    assert (await send(served, body=EVENT + b" " * 2**20)).status_code == 413
    assert (await send(await serve())).json()["code"] == "registry_webhooks_off"
