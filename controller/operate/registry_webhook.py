"""`POST /registry/webhook`: MLflow reports a change of its registry, and the pool's processes read it at once.

MLflow signs as Standard Webhooks says, but with headers of its own and a secret of any form. A repeated event only
makes the registry be read once more, so no event is remembered.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import msgspec

from app.redis import registry_events
from app.redis.client import AsyncClient
from app.server_errors import (
    ConfigurationError,
    RegistryWebhookInvalidError,
    RegistryWebhooksOffError,
)
from app.settings import ControllerSettings

logger = logging.getLogger(__name__)
TOLERANCE_S = 300.0  # MLflow repeats a failed delivery within two minutes, with the same time
EXPECTED = (
    "compare the secret of the webhook in MLflow with MODELYARD_REGISTRY_WEBHOOK_SECRET of the controller"
)


class _Data(msgspec.Struct):
    name: str = ""


class _Event(msgspec.Struct):
    entity: str
    action: str
    data: _Data


def secret_of(settings: ControllerSettings) -> bytes:
    """The secret that MLflow signs with; empty if there is none.

    Raises:
        ConfigurationError: Its file cannot be read.
    """
    path: Path | None = settings.registry_webhook_secret_file
    try:
        text = path.read_text().strip() if path else settings.registry_webhook_secret
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the secret of MLflow's webhook in {path} cannot be read: {error}"
        ) from None
    return text.encode()


class RegistryWebhook:
    """Checks events of MLflow, and passes them on.

    Args:
        secret: Empty to refuse all.
    """

    def __init__(self, secret: bytes, client: AsyncClient) -> None:
        self._secret = secret
        self._client = client

    async def receive(self, headers: Mapping[str, str], body: bytes) -> None:
        """Tell the pool of an event.

        Raises:
            RegistryWebhooksOffError: There is no secret.
            RegistryWebhookInvalidError: It is not from MLflow, too old, or no event.
            LedgerUnavailableError: Redis does not answer; MLflow repeats the event.
        """
        if not self._secret:
            raise RegistryWebhooksOffError(
                "this controller takes no webhooks of MLflow; set MODELYARD_REGISTRY_WEBHOOK_SECRET to the secret of "
                "the webhook in MLflow"
            )
        sent_at = headers.get("x-mlflow-timestamp", "")
        signed = b".".join((headers.get("x-mlflow-delivery-id", "").encode(), sent_at.encode(), body))
        expected = "v1," + b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode()):
            raise RegistryWebhookInvalidError(f"the webhook is not signed by this secret; {EXPECTED}")
        if not sent_at.isdecimal() or abs(time.time() - int(sent_at)) > TOLERANCE_S:
            raise RegistryWebhookInvalidError(
                f"the webhook was sent more than {TOLERANCE_S:g} s ago, or the clocks differ; it may be a replay"
            )
        try:
            event = msgspec.json.decode(body, type=_Event)
        except msgspec.DecodeError as error:
            raise RegistryWebhookInvalidError(
                f"the webhook is not an event of MLflow's registry: {error}"
            ) from None
        if event.data.name:  # it may be about something else, such as a budget
            logger.info("MLflow reports: %s of %r %s", event.entity, event.data.name, event.action)
            await registry_events.publish(self._client, event.data.name)
