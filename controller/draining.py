"""How far a controller that was told to stop has come. The server sets it, the endpoints go by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Drain:
    """Both false while the controller serves.

    Attributes:
        has_begun: New work is refused; whoever waits for an outcome goes on waiting.
        is_over: Whoever still waits is answered now, with or without the outcome.
    """

    has_begun: bool = False
    is_over: bool = False
