"""The drain state of a stopping controller. The server sets it, and the endpoints read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Drain:
    """The phases of a drain, set one after the other; all are false while the controller serves.

    Attributes:
        is_announced: The health probes report the stop, and every answer closes its connection. New work is still
            accepted.
        has_begun: New work is refused; callers that wait for an outcome continue to wait.
        is_over: Waiting callers are answered now, with or without the outcome.
    """

    is_announced: bool = False
    has_begun: bool = False
    is_over: bool = False
