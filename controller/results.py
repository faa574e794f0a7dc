"""Delivers outcomes to callers: receives notices and reads the ledger."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Container, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import TypeGuard, cast

import msgspec

from app.clock import PoolClock
from app.ledger import ids, wire
from app.ledger.controller_ledger import ControllerLedger, JobView
from app.ledger.ids import BATCH_ID_LENGTH, JobRef
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.key_watch import KeyWatch
from app.server_errors import JobGoneError, LedgerUnavailableError, ModelyardError, UnknownJobError, WireError
from app.unreadable import Unreadable
from controller.admission.authentication import Caller
from controller.decisions import decode, forced_explanation
from controller.dispatch import Dispatcher
from controller.http.draining import Drain
from controller.jobs import SentBatch
from controller.pool_watcher import PoolWatcher
from modelyard.schemas import FINAL_STATUSES, RouteExplanation

logger = logging.getLogger(__name__)

POLL_FIRST_S = 0.02
POLL_LONGEST_S = 0.25
NOTICE_OVERDUE_S = 2.0
OVERDUE_PER_PASS = 1024


class Results:
    """Job results for callers.

    Args:
        client: Asynchronous Redis client that returns bytes.
        replayable: The batches that this controller writes again if Redis has lost them.
    """

    def __init__(
        self,
        client: AsyncClient,
        ledger: ControllerLedger,
        *,
        dispatcher: Dispatcher,
        replayable: Container[str],
        watcher: PoolWatcher,
        key_watch: KeyWatch,
        clock: PoolClock,
        unreadable: Unreadable,
        drain: Drain,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._replayable = replayable
        self._watcher = watcher
        self._key_watch = key_watch
        self._clock = clock
        self._unreadable = unreadable
        self._drain = drain

    def hear(self, notice: bytes) -> None:
        """Process the outcomes of a batch that were announced to this controller."""
        try:
            batch_id = notice[:BATCH_ID_LENGTH].decode()
            self._dispatcher.completed(batch_id, wire.decode_outcome(notice[BATCH_ID_LENGTH:]))
        except (WireError, UnicodeDecodeError) as error:
            self._unreadable.note("notice", "", f"left out: {error}")

    async def check_overdue(self) -> None:
        """Look up batches whose notice may have been lost with a connection; runs until cancelled."""
        while True:
            await asyncio.sleep(NOTICE_OVERDUE_S / 2)
            try:
                await self._check_overdue_once()
            except LedgerUnavailableError:
                continue
            except Exception:
                logger.exception("a look-up of overdue batches failed; retrying")

    async def job(self, job_id: str, caller: Caller, wait_s: float = 0) -> JobView:
        """Look up a job and wait up to `wait_s` seconds for its outcome, or until the controller stops.

        Raises:
            UnknownJobError: No job that the caller may read has this id.
            JobGoneError: Its outcome has expired.
            LedgerUnavailableError: Redis does not answer.
        """
        [found] = await self.jobs([job_id], caller, wait_s)
        if isinstance(found, ModelyardError):
            raise found
        return found

    async def jobs(
        self, job_ids: Sequence[str], caller: Caller, wait_s: float = 0
    ) -> list[JobView | ModelyardError]:
        """Look up jobs, in the order of their ids, and wait like `job` until all have their outcomes.

        The error of a job stands in its place.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        found: dict[str, JobView | ModelyardError] = {}
        if wait_s > 0:
            async for news in self.follow(job_ids, caller, wait_s):
                found |= news
        else:
            refs, found = self._parse(job_ids, caller)
            found |= {refs[ref]: each for ref, each in (await self._read(refs, caller)).items()}
        return [found[job_id] for job_id in job_ids]

    async def follow(
        self, job_ids: Sequence[str], caller: Caller, wait_s: float = inf, silence_s: float = inf
    ) -> AsyncGenerator[dict[str, JobView | ModelyardError], None]:
        """Look up jobs by id, and again each job that has changed, until all have their outcomes.

        Ends after `wait_s` seconds at the latest, or when the controller stops. After a silence of `silence_s` seconds
        the news is empty.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        refs, unknown = self._parse(job_ids, caller)
        awaited = _Awaited(refs)
        until_s, poll_s, is_armed = time.monotonic() + wait_s, POLL_FIRST_S, False
        due = set(awaited.ids)
        with self._key_watch.watch(map(_key, due)) as watch:
            while True:
                if due:
                    is_armed = await watch.arm(set(map(_key, due)))
                found = await self._read(due, caller) if due else {}
                yield unknown | {awaited.ids[ref]: each for ref, each in found.items()}
                unknown = {}
                awaited.note(found)
                left_s = until_s - time.monotonic()
                if not awaited.ids or left_s <= 0 or self._drain.is_over:
                    return
                next_s = awaited.next_expiry_s(self._clock.now_ms())
                changed = await watch.wait(min(left_s, silence_s, next_s, inf if is_armed else poll_s))
                poll_s = min(2 * poll_s, POLL_LONGEST_S)
                due = awaited.due(changed, self._clock.now_ms()) if is_armed else set(awaited.ids)

    def _parse(
        self, job_ids: Sequence[str], caller: Caller
    ) -> tuple[dict[JobRef, str], dict[str, JobView | ModelyardError]]:
        """The jobs of the ids that this pool has signed, and an error for each other id."""
        refs: dict[JobRef, str] = {}
        unknown: dict[str, JobView | ModelyardError] = {}
        for job_id in job_ids:
            ref = self._watcher.signer.parse_job_id(job_id)
            if ref is None:
                unknown[job_id] = _unknown(caller)
            else:
                refs[ref] = job_id
        return refs, unknown

    def end_waits(self) -> None:
        """Answer all waiting callers now, because the controller is stopping."""
        self._key_watch.wake_all()

    async def _read(self, refs: Iterable[JobRef], caller: Caller) -> dict[JobRef, JobView | ModelyardError]:
        views = await self._ledger.read_all(refs)
        is_restored = None in views.values() and await self._watcher.is_being_restored()
        found: dict[JobRef, JobView | ModelyardError] = {}
        for ref, view in views.items():
            if view is None:
                found[ref] = _restored() if is_restored else self._missing(ref, caller)
            elif isinstance(view, JobView) and not caller.may_read(view.head.jobs[ref.index].owner):
                found[ref] = _unknown(caller)
            else:
                found[ref] = view
        return found

    async def explain(self, view: JobView) -> RouteExplanation:
        """Why a job went to its version.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        entry, head = view.head.jobs[view.ref.index], view.head
        unexplained = forced_explanation(
            entry.policy, head.worker, head.model_name, head.model_version, cold=head.cold
        )
        if not entry.decision:
            return unexplained
        known = dict(self._watcher.view.snapshot.explanations()).get(entry.decision)
        if known:
            return known
        with ledger_errors():
            document = cast(bytes | None, await self._client.get(keys.decision(entry.decision)))
        with suppress(msgspec.MsgspecError):
            return decode(document or b"")
        return unexplained

    def _missing(self, ref: JobRef, caller: Caller) -> ModelyardError:
        if not caller.is_operator:
            return _unknown(caller)  # the owner's name was lost with the record
        # Only this pool can sign the id, so the job existed. An outcome is kept for the retention time, so a
        # younger one did not expire: Redis lost it.
        age_ms = self._clock.now_ms() - ids.accepted_at_ms(ref.batch_id)
        if age_ms < self._ledger.retention_ms:
            return UnknownJobError(
                "this job was accepted, but Redis has lost its data since; submit it again, and run `modelyard doctor`"
            )
        return JobGoneError("the retention time of the job's outcome has ended; submit the job again")

    async def _check_overdue_once(self) -> None:
        sent_before_s = time.monotonic() - NOTICE_OVERDUE_S
        batches = [batch for batch in self._dispatcher.sent.values() if batch.sent_at_s < sent_before_s]
        # A random choice: if the oldest came first, a queue without workers would block all others.
        batches = random.sample(batches, min(len(batches), OVERDUE_PER_PASS))
        pipe = self._client.pipeline(transaction=False)
        for batch in batches:
            pipe.hmget(keys.batch(batch.batch_id), ["head", "out"])
        with ledger_errors():
            # One unreadable record must not prevent the lookup of the others.
            rows = await pipe.execute(raise_on_error=False)
        for batch, row in zip(batches, rows, strict=True):
            if isinstance(row, Exception):
                self._unreadable.note("batch", batch.batch_id, row)
                self._dispatcher.abandon(batch)
                continue
            head, out = cast(list[bytes | None], row)
            if out:
                self._make_up_for_notice(batch, out)
            elif head is None and batch.batch_id not in self._replayable:
                self._dispatcher.abandon(batch, lost=True)

    def _make_up_for_notice(self, batch: SentBatch, out: bytes) -> None:
        try:
            self._dispatcher.completed(batch.batch_id, wire.decode_outcome(out))
        except WireError as error:
            self._unreadable.note("outcome", batch.batch_id, f"left out: {error.detail}")
            self._dispatcher.abandon(batch)


class _Awaited:
    """Jobs without an outcome.

    Args:
        ids: Their ids.
    """

    def __init__(self, ids: dict[JobRef, str]) -> None:
        self.ids = ids
        self._deadlines_ms: dict[JobRef, float] = {}  # a queued job expires without a change of its record

    def note(self, found: dict[JobRef, JobView | ModelyardError]) -> None:
        """Process a reading."""
        for ref, each in found.items():
            self._deadlines_ms.pop(ref, None)
            if not is_open(each):
                del self.ids[ref]
            elif each.status == "queued":
                self._deadlines_ms[ref] = each.head.jobs[ref.index].deadline_ms

    def next_expiry_s(self, now_ms: float) -> float:
        """Seconds until the next one may expire; Redis's clock may differ a little from the estimate."""
        return max((min(self._deadlines_ms.values(), default=inf) - now_ms) / 1000, POLL_FIRST_S)

    def due(self, changed: set[str], now_ms: float) -> set[JobRef]:
        """The jobs that must be read again."""
        late = {ref for ref, deadline_ms in self._deadlines_ms.items() if deadline_ms <= now_ms}
        return {ref for ref in self.ids if _key(ref) in changed} | late


def is_open(found: JobView | ModelyardError) -> TypeGuard[JobView]:
    """Whether a job has no outcome yet."""
    return isinstance(found, JobView) and found.status not in FINAL_STATUSES


def _key(ref: JobRef) -> str:
    return keys.batch(ref.batch_id)


def _restored() -> LedgerUnavailableError:
    return LedgerUnavailableError(
        "Redis returned without this job, which a controller may replay; try again shortly", retry_after_s=1
    )


def _unknown(caller: Caller) -> UnknownJobError:
    # A restricted caller cannot tell apart another caller's job, an expired job and a job that never existed.
    if caller.is_operator:
        return UnknownJobError("no job has this id")
    return UnknownJobError(
        "no job of this API key has this id, or the retention time of its outcome has ended"
    )
