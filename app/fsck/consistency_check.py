"""Checks a live pool and repairs safe cases with scripts, which check again before they change anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

from app.celery_app import create_celery
from app.clock import to_ms
from app.fsck.examination import MOST_BATCHES_COUNTED, Examiner
from app.fsck.findings import Finding, text
from app.fsck.fsck_commands import (
    delete_if_same,
    drop_entry,
    expire_if_endless,
    sum_backlog,
    trim_messages,
)
from app.ledger import commands, ids, wire
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.wakeup_message import WakeUpMessages, batch_id_of, write_template
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import Call, run
from app.server_errors import WireError
from app.settings import HEARTBEATS_TO_LIVE, Settings
from app.worker_record import decode_record

OVERDUE_PER_MEND = 10_000


@dataclass
class Report:
    """The report of `modelyard doctor`.

    Attributes:
        findings: Inconsistencies that were present in every examination.
        mended: Kind and subject of repaired findings.
        notes: Harmless observations.
        counts: Number of objects by kind.
        looks: Number of examinations.
    """

    findings: list[Finding]
    notes: list[str]
    counts: dict[str, int]
    looks: int
    mended: set[tuple[str, str]] = field(default_factory=set)

    @property
    def is_healthy(self) -> bool:
        """Whether there are no findings."""
        return not self.findings


def patience_s(settings: Settings) -> float:
    """Maximum seconds in which a healthy pool recovers from a crash: detection, lease takeover, two passes."""
    return (2 * HEARTBEATS_TO_LIVE + 4) * settings.heartbeat_s + 4


class Doctor:
    """Examines and repairs the pool.

    Args:
        client: Asynchronous Redis client that returns bytes.

    Attributes:
        mends: Repair function by kind of finding; other kinds are only reported.
    """

    def __init__(self, client: AsyncClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._ledger = ControllerLedger(client, settings.result_retention_s)
        self._examiner = Examiner(client)
        self._template = write_template(create_celery(settings))
        self.mends: dict[str, Callable[[Finding], Awaitable[bool]]] = {
            "backlog_wrong": self._add_up,
            "dead_claim": self._take_from_dead,
            "finished_but_listed": self._close_finished,
            "lost_message": self._send_again,
            "no_batch": self._drop,
            "no_input": self._close_unreadable,
            "no_record": self._forget,
            "no_ttl": self._expire,
            "not_listed": self._list,
            "overdue": self._close_overdue,
            "stale_messages": self._trim,
            "unreadable_batch": self._close_unreadable,
            "unreadable_worker": self._delete_worker,
        }

    async def examine(self, patience_s: float) -> Report:
        """Examine the pool; while there are findings, repeat it each heartbeat until they vanish or time is up.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        seen = await self._examiner.examine()
        odd, looks, until_s = seen.findings, 1, time.monotonic() + patience_s
        while odd and time.monotonic() < until_s:
            await asyncio.sleep(min(self._settings.heartbeat_s, patience_s))
            seen = await self._examiner.examine()
            looks += 1
            odd = {key: seen.findings[key] for key in odd if key in seen.findings}
        findings = sorted(odd.values(), key=lambda each: (each.kind, each.queue, each.subject))
        return Report(findings, seen.notes, seen.counts, looks)

    async def mend(self, report: Report) -> None:
        """Repair the findings; each script first checks that its finding still exists.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        # Counts last: earlier repairs may change them.
        for finding in sorted(report.findings, key=lambda each: each.kind == "backlog_wrong"):
            if finding.kind not in self.mends:
                continue
            try:
                with ledger_errors():
                    if await self.mends[finding.kind](finding):
                        report.mended.add((finding.kind, finding.subject))
            except WireError:
                continue  # another key of the queue is broken; that is a separate finding
        with ledger_errors():
            for queue in {finding.queue for finding in report.findings if finding.queue}:
                await self._sum(queue)

    async def _now_ms(self) -> float:
        return to_ms(*await self._client.time())

    async def _run(self, call: Call) -> bool:
        return bool(await run(self._client, call))

    async def _sum(self, queue: str) -> bool:
        return await self._run(sum_backlog(queue, MOST_BATCHES_COUNTED, repair=True))

    async def _add_up(self, found: Finding) -> bool:
        return await self._sum(found.queue)

    async def _close_finished(self, found: Finding) -> bool:
        return await self._run(commands.close_finished(found.batch_id, found.queue))

    async def _forget(self, found: Finding) -> bool:
        return await self._ledger.forget(found.batch_id, found.queue)

    async def _list(self, found: Finding) -> bool:
        raw = cast(bytes | None, await self._client.hget(keys.batch(found.batch_id), "head"))
        jobs = wire.decode_head(raw or b"").jobs
        deadline_ms = max(job.deadline_ms for job in jobs)
        accepted_at_ms = ids.accepted_at_ms(found.batch_id)
        return await self._run(
            commands.list_again(found.batch_id, found.queue, accepted_at_ms, deadline_ms, len(jobs))
        )

    async def _drop(self, found: Finding) -> bool:
        return await self._run(drop_entry(found.queue, found.batch_id.encode("latin-1")))

    async def _close_unreadable(self, found: Finding) -> bool:
        if not (keys.is_queue(found.queue) and ids.is_well_formed(found.batch_id)):
            return False
        return await self._ledger.close_unreadable(found.batch_id, found.queue, await self._now_ms())

    async def _take_from_dead(self, found: Finding) -> bool:
        message = WakeUpMessages(self._template, found.queue).write(found.batch_id)
        return await self._ledger.requeue_from_dead(found.batch_id, found.queue, found.owner, message)

    async def _send_again(self, found: Finding) -> bool:
        """Send all lost batches of the queue: the report contains only one per queue."""
        lost = await self._examiner.lost(found.queue)
        messages = WakeUpMessages(self._template, found.queue)
        # The last message sent is taken first.
        sent = [
            await self._ledger.requeue(each, found.queue, "", messages.write(each)) for each in lost[::-1]
        ]
        return any(sent)

    async def _close_overdue(self, found: Finding) -> bool:
        now_ms = await self._now_ms()
        overdue = await self._client.zrangebyscore(
            keys.deadlines(found.queue), "-inf", now_ms - 1000, start=0, num=OVERDUE_PER_MEND
        )
        held = set(cast(list[bytes], await self._client.hkeys(keys.running(found.queue))))
        closed = [
            await self._close_one(text(each), found.queue, now_ms)
            for each in cast(list[bytes], overdue)
            if each not in held
        ]
        return any(closed)

    async def _close_one(self, batch_id: str, queue: str, now_ms: float) -> bool:
        try:
            return await self._ledger.close_overdue(batch_id, queue, now_ms)
        except WireError:
            return await self._ledger.close_unreadable(batch_id, queue, now_ms)

    async def _expire(self, found: Finding) -> bool:
        ttl_s = self._settings.result_retention_s
        if found.subject.startswith(keys.worker("")):
            ttl_s = self._settings.worker_ttl_s
        elif found.subject == keys.RECONCILER_LEASE:
            ttl_s = HEARTBEATS_TO_LIVE * self._settings.heartbeat_s
        ttl_ms = int(ttl_s * 1000)
        if found.subject.startswith(keys.batch("")):
            ttl_ms += await self._ms_to_deadline(found.subject)
        return await self._run(expire_if_endless(found.subject, ttl_ms))

    async def _ms_to_deadline(self, name: str) -> int:
        head, out = cast(list[bytes | None], await self._client.hmget(name, ["head", "out"]))
        if out or not head:
            return 0
        last_ms = max(job.deadline_ms for job in wire.decode_head(head).jobs)
        return max(0, int(last_ms - await self._now_ms()))

    async def _delete_worker(self, found: Finding) -> bool:
        raw = cast(bytes | None, await self._client.get(found.subject))
        if raw is None:
            return True
        try:
            decode_record(raw)
        except WireError:
            return await self._run(delete_if_same(found.subject, raw))
        return False

    async def _trim(self, found: Finding) -> bool:
        trimmed = 0
        while n := await self._trim_once(found.queue):  # trimming shifts the pages
            trimmed += n
        return trimmed > 0

    async def _trim_once(self, queue: str) -> int:
        trimmed = 0
        async for page in self._examiner.messages(queue):
            stale = [message for message, is_pending in page if not is_pending]
            if stale:
                call = trim_messages(queue, {message: batch_id_of(message) or "" for message in stale})
                trimmed += await run(self._client, call)
        return trimmed
