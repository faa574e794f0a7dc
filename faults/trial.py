"""Runs one fault: load, fault, recovery, and the account of every job."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import redis

from app.ledger import ids
from app.redis import keys
from app.redis.client import connect_url
from faults.accounting import End
from faults.fault_pool import Pool, TooLateError
from faults.job_load import POST_TIMEOUT_S, Account, Load, Recipe, Sent, account, good_jobs, http_client
from faults.table import Fault, Row

RATE_PER_S = 200.0
SHORT_RATE_PER_S = 20.0
SETTLE_S = 60.0
POLL_S = 0.01


class ToolMissingError(Exception):
    """The row needs a program that is not installed."""


class Witness:
    """Records every published outcome and its time, in a thread: none may be written twice."""

    def __init__(self, redis_url: str) -> None:
        self.heard: dict[str, list[float]] = defaultdict(list)
        self._subscribed_at_s = 0.0
        self._n_twice = 0  # among the forgotten outcomes
        self._lock = threading.Lock()
        self._redis_url = redis_url
        self._closing = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="witness", daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def outcomes_twice(self) -> int:
        """Jobs whose outcome was written more than once."""
        return self._n_twice + sum(ids.n_jobs(batch) for batch, times in self.heard.items() if len(times) > 1)

    def forget(self, before_s: float) -> None:
        """Drop outcomes last heard before `before_s` (`time.monotonic()`); keep the number written twice."""
        with self._lock:
            old = [batch for batch, times in self.heard.items() if times[-1] < before_s]
            self._n_twice += sum(ids.n_jobs(batch) for batch in old if len(self.heard[batch]) > 1)
            for batch in old:
                del self.heard[batch]

    def excuse(self, since_s: float, since_ms: float) -> int:
        """Drop outcomes heard since `since_s` of batches accepted before `since_ms`; return their number.

        A Redis that is set back to `since_ms`, by its own clock, has these batches without their outcomes.
        """
        with self._lock:
            lost = [
                batch
                for batch, times in self.heard.items()
                if times[-1] >= since_s and ids.accepted_at_ms(batch) < since_ms
            ]
            for batch in lost:
                self.heard[batch].pop()
                if not self.heard[batch]:
                    del self.heard[batch]
        return len(lost)

    def excuse_repeats(self, since_s: float) -> int:
        """Drop outcomes heard since `since_s` on the previous connection and again on the present; return their number.

        A new primary may lack these outcomes. (`time.monotonic()`)
        """
        with self._lock:
            repeated = [
                times
                for times in self.heard.values()
                if len(times) > 1 and since_s <= times[0] < self._subscribed_at_s <= times[1]
            ]
            for times in repeated:
                del times[0]
        return len(repeated)

    def first_since(self, since_s: float) -> float | None:
        """Time of the first outcome after `since_s` (`time.monotonic()`), or None."""
        return min(
            (at for times in list(self.heard.values()) for at in times[:1] if at > since_s), default=None
        )

    def _listen(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(redis.RedisError, OSError):
                self._hear()
            self._closing.wait(0.1)

    def _hear(self) -> None:
        with connect_url(self._redis_url) as client, client.pubsub() as notices:
            notices.psubscribe(keys.reply_channel("*"))
            while not self._closing.is_set():
                notice: Any = notices.get_message(timeout=0.1)
                if notice and notice["type"] == "psubscribe":
                    self._subscribed_at_s = time.monotonic()
                    self._listening.set()
                elif notice:
                    with self._lock:
                        self.heard[notice["data"][: ids.BATCH_ID_LENGTH].decode()].append(time.monotonic())


class Trial:
    """The tools of a row.

    Attributes:
        short: Whether the row runs its short form of a few seconds.
        row: The result; `recovered`, `require` and `note` add to it.
        counted: The account of jobs that are no longer in `sent.accepted`.
    """

    def __init__(self, fault: Fault, pool: Pool, witness: Witness, *, short: bool) -> None:
        self.pool = pool
        self.witness = witness
        self.short = short
        self.sent = Sent()
        self.row = Row(fault.name, fault.title)
        self.counted = Account()

    def load(
        self,
        recipes: Iterator[Recipe] | None = None,
        *,
        rate_per_s: float | None = None,
        query: str = "worker=1&deadline=300",
        urls: Callable[[], Sequence[str]] | None = None,
    ) -> Load:
        """`async with trial.load():` posts while the block runs, to all controllers in turn."""
        rate_per_s = rate_per_s or (SHORT_RATE_PER_S if self.short else RATE_PER_S)
        return Load(urls or (lambda: self.pool.urls), self.sent, recipes or good_jobs(), rate_per_s, query)

    async def submit(self, recipe: Recipe, query: str = "worker=1&deadline=300") -> str:
        """Post one job in addition to the load, and return the id of its batch.

        Raises:
            httpx.HTTPStatusError: It was not accepted.
        """
        async with http_client(timeout=POST_TIMEOUT_S) as http:
            answer = await http.post(f"{self.pool.urls[0]}/predict?{query}", json={"data": recipe.samples})
        answer.raise_for_status()
        job_id = answer.json()["id"]
        self.sent.accepted[job_id] = recipe
        return str(job_id).partition(".")[0]

    def account_for(self, done: Sequence[End], refused: int) -> None:
        """Account for jobs that the row posted and followed itself; they may have expired."""
        counts = Counter(end.status for end in done)
        self.row.accepted += len(done)
        self.row.succeeded += counts["succeeded"]
        self.row.failed_as_expected += counts["expired"]
        self.row.lost += counts["open"]
        self.row.otherwise += counts["failed"] + counts["cancelled"]
        self.row.refused += refused

    def recovered(self, seconds: float) -> None:
        """Note the time of one recovery."""
        self.row.recoveries_s.append(seconds)

    def note(self, text: str) -> None:
        """Note a further measurement."""
        self.row.notes.append(text)

    def require(self, holds: object, otherwise: str) -> None:
        """Note a violated requirement unless `holds`; the row goes on and is shown as broken."""
        if not holds:
            self.row.broken.append(otherwise)

    async def until(self, condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
        """Wait for a condition and return its value.

        Raises:
            TooLateError: It was not true within `limit_s`.
        """
        give_up_at = time.monotonic() + limit_s
        while not (answer := await asyncio.to_thread(condition)):
            if time.monotonic() > give_up_at:
                raise TooLateError(f"not within {limit_s:g} s: {what}")
            await asyncio.sleep(POLL_S)
        return answer

    async def next_outcome(self, since_s: float, limit_s: float = 60.0) -> float:
        """Seconds from `since_s` until the next outcome was written."""
        at: float = await self.until(
            lambda: self.witness.first_since(since_s), "an outcome is written", limit_s
        )
        return at - since_s


async def run(fault: Fault, pool: Pool, *, short: bool) -> Row:
    """Run one fault and account for every accepted job."""
    started_at = time.monotonic()
    with Witness(pool.redis_url) as witness:
        trial = Trial(fault, pool, witness, short=short)
        try:
            await fault.inject(trial)
            await asyncio.to_thread(pool.wait_until_well)
        except (TooLateError, httpx.HTTPError, redis.RedisError, OSError) as error:
            trial.require(False, str(error) or repr(error))
        trial.counted.add(await account(pool.urls, trial.sent.accepted, SETTLE_S))
    row, counted = trial.row, trial.counted
    if trial.sent.refused or trial.sent.broken:
        counts = trial.sent.refused | Counter({"broken connection": trial.sent.broken})
        trial.note("refused: " + ", ".join(f"{count} with {what}" for what, count in counts.items()))
    row.accepted += counted.total
    row.succeeded += counted.succeeded
    row.failed_as_expected += counted.failed_as_expected
    row.otherwise += counted.otherwise
    row.lost += counted.lost
    row.refused += trial.sent.refused.total() + trial.sent.broken
    row.duplicated = witness.outcomes_twice()
    row.took_s = time.monotonic() - started_at
    trial.require(row.accepted, "no job was accepted")
    trial.require(not row.lost, f"{row.lost} accepted jobs were lost: {counted.examples}")
    trial.require(not row.otherwise, f"{row.otherwise} jobs had an unexpected outcome: {counted.examples}")
    trial.require(not row.duplicated, f"the outcome of {row.duplicated} jobs was written twice")
    return row
