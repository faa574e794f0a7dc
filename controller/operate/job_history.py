"""The jobs of the pool for operators: open jobs, and a history of recently finished ones.

Each controller adds the outcomes that it hears and the cancels that it writes. The history lasts as long as outcomes do
and is bounded: Redis keeps the newest `MOST_KEPT` succeeded jobs and as many others, and a controller adds only the
slowest of a busy second. A job is missing if its controller ended before its outcome; `GET /results` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge, nlargest
from typing import Any, cast

import msgspec

from app.clock import PoolClock
from app.ledger import ids, wire
from app.ledger.ids import JobRef
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.server_errors import LedgerUnavailableError, ParameterError, WireError
from controller.events import Completed
from modelyard.schemas import FINAL_STATUSES, JobList, JobSummary, Status

MOST_KEPT = 10_000
PAUSE_S = 1.0
BATCHES_PER_PAUSE = 64
FAILING_BATCHES_PER_PAUSE = 512
JOBS_PER_BATCH = 4  # succeeded ones; a batch holds its jobs in the order of their arrival, the slowest first
SUCCEEDED_PER_PAUSE = 50
OTHERS_PER_PAUSE = 500
CHUNK = 500
MOST_QUEUES = 256
GROUPS: dict[str, frozenset[Status]] = {
    "open": frozenset({"queued", "running"}),
    "finished": FINAL_STATUSES,
}
STATUSES = (*GROUPS, "queued", "running", "succeeded", "failed", "expired", "cancelled")
SUCCEEDED, OTHERS = "succeeded", "unsuccessful"

_decode = msgspec.json.Decoder(JobSummary).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Filter of a list of jobs.

    Attributes:
        status: One of `STATUSES`.
        model: Model name; empty for every model.
        version: Its version, or None for all.
        code: Error code; empty for any.
        min_ms: Least time in ms from the request's arrival to its outcome, or until now.
        min_attempts: Least number of claims by a worker.
        since_ms: Earliest time of the outcome; of an open job, of its arrival. Redis's clock.
    """

    status: str = "finished"
    model: str = ""
    version: int | None = None
    code: str = ""
    min_ms: float = 0.0
    min_attempts: int = 0
    since_ms: float = 0.0

    @property
    def statuses(self) -> frozenset[str]:
        """The statuses that it lets through."""
        return GROUPS.get(self.status) or frozenset({self.status})

    def lets_through(self, job: JobSummary) -> bool:
        """Whether a job is on the list."""
        return (
            job.status in self.statuses
            and self.model in ("", job.model_name)
            and self.version in (None, job.model_version)
            and self.code in ("", job.error_code)
            and job.end_to_end_ms >= self.min_ms
            and job.attempts >= self.min_attempts
            and (job.finished_at_ms or job.received_at_ms) >= self.since_ms
        )


class JobHistory:
    """Observes outcomes, and lists jobs.

    Args:
        client: Asynchronous Redis client that returns bytes.
        retention_s: Retention of outcomes in seconds.
    """

    def __init__(self, client: AsyncClient, clock: PoolClock, retention_s: float) -> None:
        self._client = client
        self._clock = clock
        self._retention_ms = int(retention_s * 1000)
        self._heard: list[Completed] = []
        self._cancelled: list[tuple[JobRef, wire.BatchHead, float]] = []

    def completed(self, event: Completed) -> None:
        """Note a batch's outcome, unless this second has brought many."""
        n_heard = len(self._heard)
        if n_heard < BATCHES_PER_PAUSE or (
            n_heard < FAILING_BATCHES_PER_PAUSE
            and any(job.status != "succeeded" for job in event.outcome.jobs)
        ):
            self._heard.append(event)

    def cancelled(self, ref: JobRef, head: wire.BatchHead) -> None:
        """Note a cancelled job: the outcome of its batch may come much later."""
        if len(self._cancelled) < OTHERS_PER_PAUSE:
            self._cancelled.append((ref, head, self._clock.now_ms()))

    async def run(self) -> None:
        """Write the noted jobs to Redis each second, until this task is cancelled."""
        while True:
            await asyncio.sleep(PAUSE_S)
            heard, self._heard = self._heard, []
            cancelled, self._cancelled = self._cancelled, []
            if heard or cancelled:
                with contextlib.suppress(LedgerUnavailableError), ledger_errors():  # a full Redis refuses it
                    await self._keep(heard, cancelled)

    async def page(self, wanted: JobFilter, limit: int, cursor: str) -> JobList:
        """One page of jobs: open ones oldest first, finished ones newest first.

        Args:
            limit: Most jobs of the page. A page of open jobs may hold fewer although more follow.
            cursor: The `next` of the page before, or empty.

        Raises:
            ParameterError: The cursor or the status is invalid.
            LedgerUnavailableError: Redis does not answer.
        """
        if wanted.status not in STATUSES:
            raise ParameterError(f"status must be one of {', '.join(STATUSES)}")
        place = _parse_cursor(cursor)
        with ledger_errors():
            if wanted.statuses <= FINAL_STATUSES:
                return await self._finished(wanted, limit, place)
            return await self._open(wanted, limit, place)

    async def _keep(
        self, heard: Sequence[Completed], cancelled: Sequence[tuple[JobRef, wire.BatchHead, float]]
    ) -> None:
        ended = [event.batch_id for event in heard] + [ref.batch_id for ref, _, _ in cancelled]
        pipe = self._client.pipeline(transaction=False)
        for batch_id in ended:
            pipe.hget(keys.batch(batch_id), "attempts")
        found = await pipe.execute(raise_on_error=False)
        attempts = [int(n) if isinstance(n, bytes) else 0 for n in found]
        done = [_cancelled_job(*each, n) for each, n in zip(cancelled, attempts[len(heard) :], strict=True)]
        for event, n in zip(heard, attempts, strict=False):
            done += _finished_jobs(event, n)
        succeeded = [job for job in done if job.status == "succeeded"]
        others = [job for job in done if job.status != "succeeded"][:OTHERS_PER_PAUSE]
        slowest = nlargest(SUCCEEDED_PER_PAUSE, succeeded, key=lambda job: job.end_to_end_ms)
        pipe = self._client.pipeline(transaction=False)
        for kind, jobs in ((SUCCEEDED, slowest), (OTHERS, others)):
            if jobs:
                pipe.zadd(keys.recent(kind), {_encode(job): job.finished_at_ms or 0.0 for job in jobs})
                pipe.zremrangebyrank(keys.recent(kind), 0, -MOST_KEPT - 1)
                pipe.pexpire(keys.recent(kind), self._retention_ms)
        await pipe.execute()

    async def _finished(self, wanted: JobFilter, limit: int, place: tuple[float, int] | None) -> JobList:
        before_ms, n_seen = place or (float("inf"), 0)
        kinds = {SUCCEEDED if status == "succeeded" else OTHERS for status in wanted.statuses}
        enough = limit + n_seen + 1
        found = [await self._newest(kind, wanted, before_ms, enough) for kind in sorted(kinds)]
        merged = list(merge(*found, key=_place_of, reverse=True))[n_seen:]
        jobs = merged[:limit]
        if len(merged) <= limit:
            return JobList(tuple(jobs))
        last_ms = _place_of(jobs[-1])[0]
        n_at_last = sum(_place_of(job)[0] == last_ms for job in jobs)
        return JobList(tuple(jobs), _cursor(last_ms, n_at_last + (n_seen if last_ms == before_ms else 0)))

    async def _newest(self, kind: str, wanted: JobFilter, before_ms: float, enough: int) -> list[JobSummary]:
        """The newest jobs of a kind that the filter lets through, no later than `before_ms`."""
        oldest_ms = max(wanted.since_ms, self._clock.now_ms() - self._retention_ms)
        found: list[JobSummary] = []
        for start in range(0, MOST_KEPT, CHUNK):
            rows = await self._client.zrevrangebyscore(
                keys.recent(kind), before_ms, oldest_ms, start=start, num=CHUNK
            )
            found += [job for job in map(_decode, cast(list[bytes], rows)) if wanted.lets_through(job)]
            if len(rows) < CHUNK or len(found) >= enough:
                break
        return sorted(found, key=_place_of, reverse=True)[:enough]

    async def _open(self, wanted: JobFilter, limit: int, place: tuple[float, int] | None) -> JobList:
        since_ms, n_seen = place or (wanted.since_ms, 0)
        backlog = cast(dict[bytes, bytes], await self._client.hgetall(keys.BACKLOG))
        queues = [queue.decode() for queue, n_jobs in backlog.items() if int(n_jobs) > 0]
        if wanted.model and wanted.version is not None:
            queues = [queue for queue in queues if queue == keys.queue_name(wanted.model, wanted.version)]
        if wanted.status == "running":
            batches = await self._claimed(queues[:MOST_QUEUES], since_ms)
        else:
            batches = await self._accepted(queues[:MOST_QUEUES], since_ms, limit + 1)
        chosen, n_jobs = [], -n_seen
        for at_ms, batch_id in batches:
            if n_jobs >= limit:
                break
            chosen.append((at_ms, batch_id))
            n_jobs += ids.n_jobs(batch_id)
        jobs: list[JobSummary] = []
        for (at_ms, _), of_batch in zip(chosen, await self._read_open(chosen), strict=True):
            skipped = n_seen if at_ms == since_ms else 0
            for index, job in enumerate(of_batch[skipped:], skipped):
                if len(jobs) == limit:
                    return JobList(tuple(jobs), _cursor(at_ms, index))
                if job and wanted.lets_through(job):
                    jobs.append(job)
        if len(batches) == len(chosen):
            return JobList(tuple(jobs))
        return JobList(tuple(jobs), _cursor(batches[len(chosen)][0], 0))

    async def _accepted(self, queues: Sequence[str], since_ms: float, most: int) -> list[tuple[float, str]]:
        """The oldest open batches of some queues, as time of acceptance and id; of each queue at most that many."""
        pipe = self._client.pipeline(transaction=False)
        for queue in queues:
            pipe.zrangebyscore(keys.pending(queue), since_ms, "+inf", start=0, num=most, withscores=True)
        listed = await pipe.execute()
        return sorted((at_ms, batch_id.decode()) for rows in listed for batch_id, at_ms in rows)

    async def _claimed(self, queues: Sequence[str], since_ms: float) -> list[tuple[float, str]]:
        """The batches that workers hold, in the same way: a worker holds few, however many jobs wait."""
        pipe = self._client.pipeline(transaction=False)
        for queue in queues:
            pipe.hkeys(keys.running(queue))
        held = [(queue, rows) for queue, rows in zip(queues, await pipe.execute(), strict=True) if rows]
        for queue, rows in held:
            pipe.zmscore(keys.pending(queue), rows)
        scores = await pipe.execute()
        return sorted(
            (at_ms, batch_id.decode())
            for (_, rows), of_queue in zip(held, scores, strict=True)
            for batch_id, at_ms in zip(rows, of_queue, strict=True)
            if at_ms is not None and at_ms >= since_ms
        )

    async def _read_open(self, batches: Sequence[tuple[float, str]]) -> list[list[JobSummary | None]]:
        """The open jobs of each batch by index; None for a job that is no longer open, or unreadable."""
        now_ms, pipe = self._clock.now_ms(), self._client.pipeline(transaction=False)
        for _, batch_id in batches:
            cancelled = [f"c:{index}" for index in range(ids.n_jobs(batch_id))]
            pipe.hmget(keys.batch(batch_id), ["head", "by", "attempts", "out", *cancelled])
        rows = await pipe.execute(raise_on_error=False)
        return [
            _open_jobs(batch_id, row, now_ms) if isinstance(row, list) else []
            for (_, batch_id), row in zip(batches, rows, strict=True)
        ]


def _cancelled_job(ref: JobRef, head: wire.BatchHead, now_ms: float, attempts: int) -> JobSummary:
    age_ms = _ms(now_ms - head.jobs[ref.index].received_at_ms)
    return JobSummary(
        **_common(ref.batch_id, head, ref.index),
        status="cancelled",
        attempts=attempts,
        finished_at_ms=now_ms,
        queue_wait_ms=age_ms,
        end_to_end_ms=age_ms,
        error_code=wire.CANCELLED.error_code,
    )


def _finished_jobs(event: Completed, attempts: int) -> Iterator[JobSummary]:
    """The jobs of a batch to keep; the cancelled ones were kept when they were cancelled."""
    head, outcome = event.head, event.outcome
    n_succeeded = 0
    for index, (entry, own) in enumerate(zip(head.jobs, outcome.jobs, strict=True)):
        if own.status == "succeeded":
            n_succeeded += 1
            if n_succeeded > JOBS_PER_BATCH:
                continue
        if own.status == "cancelled":
            continue
        ran = bool(outcome.worker_id)
        yield JobSummary(
            **_common(event.batch_id, head, index),
            status=own.status,
            attempts=attempts,
            worker_id=outcome.worker_id or None,
            finished_at_ms=outcome.finished_at_ms,
            queue_wait_ms=_ms(outcome.started_at_ms - entry.received_at_ms),
            inference_ms=outcome.inference_ms if ran else None,
            batch_samples=outcome.n_samples if ran else None,
            end_to_end_ms=_ms(outcome.finished_at_ms - entry.received_at_ms),
            error_code=own.error_code,
        )


def _open_jobs(batch_id: str, row: list[bytes | None], now_ms: float) -> list[JobSummary | None]:
    raw, by, attempts, outcome, *cancelled = row
    if raw is None or outcome:
        return []
    try:
        head = wire.decode_head(raw)
    except WireError:
        return []
    jobs: list[JobSummary | None] = []
    for index, (entry, is_cancelled) in enumerate(zip(head.jobs, cancelled, strict=False)):
        age_ms = _ms(now_ms - entry.received_at_ms)
        job = JobSummary(
            **_common(batch_id, head, index),
            status="running" if by else "queued",
            attempts=int(attempts or 0),
            worker_id=by.decode() if by else None,
            queue_wait_ms=None if by else age_ms,
            end_to_end_ms=age_ms,
        )
        jobs.append(None if is_cancelled else job)
    return jobs


def _common(batch_id: str, head: wire.BatchHead, index: int) -> dict[str, Any]:
    entry = head.jobs[index]
    return {
        "id": ids.job_id(batch_id, index),
        "worker": head.worker,
        "model_name": head.model_name,
        "model_version": head.model_version,
        "policy": entry.policy,
        "forced": entry.forced,
        "caller": entry.owner,
        "n_samples": entry.n_samples,
        "received_at_ms": entry.received_at_ms,
        "deadline_ms": entry.deadline_ms,
    }


def _place_of(job: JobSummary) -> tuple[float, str]:
    return job.finished_at_ms or 0.0, job.id


def _ms(value: float) -> float:
    return max(0.0, round(value, 3))


def _cursor(at_ms: float, n_seen: int) -> str:
    return f"{at_ms!r}:{n_seen}"


def _parse_cursor(cursor: str) -> tuple[float, int] | None:
    """The time and the number of jobs of that time on the pages before; None for the first page."""
    if not cursor:
        return None
    at_ms, _, n_seen = cursor.partition(":")
    try:
        place = float(at_ms), int(n_seen)
    except ValueError:
        place = -1.0, -1
    if not (0 <= place[0] < 1e15 and 0 <= place[1] < 1e6):
        raise ParameterError("cursor must be the `next` of the page before")
    return place
