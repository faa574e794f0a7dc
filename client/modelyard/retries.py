"""The retry policy of both clients: which failed calls are repeated, when, and how often."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

from modelyard.errors import ModelyardError, QueueFullError, RateLimitError, UnavailableError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with jittered exponential backoff.

    Repeating a POST is safe because every one carries an idempotency key.

    Attributes:
        attempts: Maximum number of attempts; 1 means no repetition.
        backoff_s: Upper bound of the first random pause; it doubles with each attempt.
        max_backoff_s: Upper bound of the doubling.
        max_retry_after_s: A call is not repeated if Retry-After is longer than this.
    """

    attempts: int = 6
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_retry_after_s: float = 60.0

    def pause_s(self, attempt: int, error: ModelyardError) -> float | None:
        """Seconds until the next attempt: the value of Retry-After plus full-jitter backoff.

        Without jitter, all callers that were refused together would return together.

        Args:
            attempt: Number of the failed attempt, from 1.
            error: Its error.

        Returns:
            None if no attempt follows.
        """
        asked_s = error.retry_after_s or 0.0
        is_passing = isinstance(error, QueueFullError | RateLimitError | UnavailableError)
        if not is_passing or attempt >= self.attempts or asked_s > self.max_retry_after_s:
            return None
        doublings = min(attempt - 1, 60)  # more would overflow a float
        pause_s = asked_s + random.uniform(0, min(self.max_backoff_s, self.backoff_s * 2**doublings))
        log.info("%s; attempt %d follows in %.1f s", error, attempt + 1, pause_s)
        return pause_s
