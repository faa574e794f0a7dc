"""Which failed calls are made again, when, and how often; the same for both clients."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, stop_after_attempt, wait_random_exponential

from app.errors import (
    ModelyardError,
    QueueFullError,
    RateLimitError,
    UnavailableError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with jittered exponential backoff.

    Repeating a POST is safe because every one carries an idempotency key.

    Attributes:
        attempts: Times that a call is made at most; 1 never repeats it.
        backoff_s: Upper end of the first random pause; it doubles with each attempt.
        max_backoff_s: Where the doubling stops.
        max_retry_after_s: A controller that asks for more patience than this is not asked again.
    """

    attempts: int = 6
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_retry_after_s: float = 60.0

    def options(self) -> dict[str, Any]:
        """Arguments for tenacity's `Retrying` and `AsyncRetrying`."""
        return {
            "stop": stop_after_attempt(self.attempts),
            "retry": lambda state: self.is_worthwhile(_error(state)),
            "wait": self.pause_s,
            "before_sleep": _say_what_happens_next,
            "reraise": True,
        }

    def is_worthwhile(self, error: BaseException | None) -> bool:
        """Whether a call that raised this, or nothing, may succeed later."""
        if not isinstance(error, QueueFullError | RateLimitError | UnavailableError):
            return False
        return (error.retry_after_s or 0.0) <= self.max_retry_after_s

    def pause_s(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: what Retry-After asks for, plus full-jitter backoff.

        The jitter stays even then, or all who were refused together would come back together.
        """
        error = _error(state)
        asked_s = error.retry_after_s if isinstance(error, ModelyardError) else None
        backoff = wait_random_exponential(multiplier=self.backoff_s, max=self.max_backoff_s)
        return (asked_s or 0.0) + backoff(state)


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _say_what_happens_next(state: RetryCallState) -> None:
    log.info(
        "%s; attempt %d follows in %.1f s", _error(state), state.attempt_number + 1, state.upcoming_sleep
    )
