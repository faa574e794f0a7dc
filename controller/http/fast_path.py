"""The fast path of a complete prediction: from its bytes to the handler, without an asyncio task or ASGI messages.

Clients send the same head repeatedly. A head that is equal byte by byte to a known one is not parsed again. Unusual
predictions (chunks, `Expect`, an idempotency key, a compressed body, an `Origin`) go through the ASGI application.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from app.errors import ModelyardError
from app.settings import ControllerSettings
from controller.admission.audit_log import Client
from controller.admission.gate import Gate
from controller.http.framing import Head
from controller.http.prediction_request import Asked, read_head, selector_of
from controller.predict import Predict

UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"idempotency-key", b"content-encoding", b"origin"})
KNOWN_HEADS = 1024
KNOWN_HEAD_BYTES = 2048  # longer heads are not cached


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The parsed content of a head.

    Attributes:
        body_bytes: Announced size of the body.
        keep_alive: Whether the connection stays open after the answer.
    """

    asked: Asked
    body_bytes: int
    keep_alive: bool


class FastPath:
    """The fast path for all connections of a controller."""

    def __init__(self, settings: ControllerSettings, gate: Gate, predict: Predict) -> None:
        self.predict = predict
        self.known_heads: dict[bytes, KnownHead] = {}
        self._settings = settings
        self._gate = gate

    def understand(self, data: bytes, head: Head, client: Client) -> KnownHead | None:
        """Parse and cache the head of a plain prediction; None if it is not plain, or if it is refused.

        Args:
            data: The bytes of the head.
        """
        if head.method != b"POST" or not head.path.rstrip(b"/").endswith(b"/predict"):
            return None
        headers = dict(head.headers)
        body_bytes = int(headers.get(b"content-length", b"0"))
        if not body_bytes or not UNUSUAL.isdisjoint(headers):
            return None
        try:
            of_path = selector_of(self._without_prefix(head.path))
            if of_path is None:
                return None
            self._gate.check_site(head.headers)
            asked = read_head(headers, head.query, self._settings, of_path)
            self._gate.admit(
                asked.authorization, client
            )  # before caching, so that strangers cannot fill the cache
        except ModelyardError:
            return None
        known = KnownHead(asked, body_bytes, head.keep_alive)
        if len(data) <= KNOWN_HEAD_BYTES:
            if len(self.known_heads) >= KNOWN_HEADS:
                self.known_heads.clear()
            self.known_heads[data] = known
        return known

    def _without_prefix(self, path: bytes) -> str:
        text = unquote(path.decode("ascii", "replace"))
        prefix = self._settings.prefix
        return text.removeprefix(prefix) if text.startswith(f"{prefix}/") else text
