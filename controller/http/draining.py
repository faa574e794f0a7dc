"""How far a controller that was told to stop has come. The server sets it, the endpoints go by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Drain:
    """All false while the controller serves; each is set after the one before.

    Attributes:
        is_announced: The health probes say that the controller stops, and every answer is the last on its connection.
            New work is still accepted.
        has_begun: New work is refused; whoever waits for an outcome goes on waiting.
        is_over: Whoever still waits is answered now, with or without the outcome.
    """

    is_announced: bool = False
    has_begun: bool = False
    is_over: bool = False
