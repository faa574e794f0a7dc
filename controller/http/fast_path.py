"""The short way of a prediction that arrived whole: from its bytes to the handler, without a task or ASGI messages.

Clients send the same head again and again. One that was read before, byte for byte, means what it meant: it is not
parsed again. What is unusual about a prediction (chunks, `Expect`, an idempotency key, a packed body, a web page that
sent it) goes the ASGI application's way.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import ModelyardError
from app.settings import ControllerSettings
from controller.admission.audit_log import Client
from controller.admission.gate import Gate
from controller.http.framing import Head
from controller.http.prediction_request import Asked, read_head
from controller.predict import Predict

UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"idempotency-key", b"content-encoding", b"origin"})
KNOWN_HEADS = 1024
KNOWN_HEAD_BYTES = 2048  # a longer one is not kept


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What a head meant.

    Attributes:
        body_bytes: How many bytes it announces.
        keep_alive: Whether the connection is kept afterwards.
    """

    asked: Asked
    body_bytes: int
    keep_alive: bool


class FastPath:
    """The short way, for all connections of a controller."""

    def __init__(self, settings: ControllerSettings, gate: Gate, predict: Predict) -> None:
        self.predict = predict
        self.known_heads: dict[bytes, KnownHead] = {}
        self._settings = settings
        self._gate = gate
        self._paths = {
            (prefix + path).encode() for prefix in ("", settings.prefix) for path in ("/predict", "/predict/")
        }

    def understand(self, data: bytes, head: Head, client: Client) -> KnownHead | None:
        """What a plain prediction's head means, which is kept; None where it asks for more, or is refused.

        Args:
            data: Its bytes.
        """
        if head.path not in self._paths or head.method != b"POST":
            return None
        headers = dict(head.headers)
        body_bytes = int(headers.get(b"content-length", b"0"))
        if not body_bytes or not UNUSUAL.isdisjoint(headers):
            return None
        try:
            self._gate.check_site(head.headers)
            asked = read_head(headers, head.query, self._settings)
            self._gate.admit(asked.authorization, client)  # so that strangers fill nothing
        except ModelyardError:
            return None
        known = KnownHead(asked, body_bytes, head.keep_alive)
        if len(data) <= KNOWN_HEAD_BYTES:
            if len(self.known_heads) >= KNOWN_HEADS:
                self.known_heads.clear()
            self.known_heads[data] = known
        return known
