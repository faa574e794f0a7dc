"""Keeps a snapshot of the pool: refreshed each heartbeat, and immediately when a worker announces a change.

It also detects a returned Redis. For some heartbeats after that, missing data in the pool is not conclusive, because
workers and controllers are still restoring data that Redis may have lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from app import start_failures
from app.clock import PoolClock
from app.ledger.ids import IdSigner
from app.pool_file import Endpoint, may_be_cold
from app.quality import figure_problem
from app.redis import keys
from app.redis.client import AsyncClient, ResponseError, ledger_errors
from app.redis.refusals import PROBE, refusal
from app.server_errors import LedgerUnavailableError, WireError
from app.settings import ControllerSettings
from app.unreadable import Unreadable
from app.version_controls import Control, Table, read_table, scaled
from app.worker_record import WorkerRecord, decode_record
from controller.admission.wait_estimate import Backlogs
from controller.configured_endpoints import ConfiguredEndpoints
from controller.decisions import DecisionWriter
from controller.last_records import LastRecords
from controller.operate.circuits import Circuits
from controller.operate.controls import exclusions, merged
from controller.operate.late_versions import passed_over
from controller.pool_snapshot import Snapshot, build_snapshot
from controller.recovery.replay_buffer import ReplayBuffer
from modelyard.schemas import StartFailure

logger = logging.getLogger(__name__)
SWEEP_AFTER_MS = 600_000  # longer than the longest life of a record without a heartbeat
AWAY_S = (
    0.25  # between two attempts while Redis is unreachable, and between two readings after it has returned
)
HEARTBEATS_TO_COME_BACK = 3
RESTART_S = 60.0  # the workers of a model may restart: until then it stays one of the endpoints


@dataclass(frozen=True, slots=True)
class PoolView:
    """The last reading of the pool.

    Attributes:
        records: Live workers.
        numbers: Worker number by queue.
        backlog_jobs: Number of jobs without an outcome, by queue; only queues with such jobs.
        oldest_at_ms: When the oldest of these jobs was accepted, by queue; Redis's clock.
        open_circuits: Queues whose versions keep failing, as this controller sees it.
        cold: The last record of each version without a ready worker for which requests may queue, by queue.
        start_failures: Why the workers of wanted versions do not start, by queue.
        snapshot: The same data, ordered for routing.
    """

    records: tuple[WorkerRecord, ...] = ()
    numbers: dict[str, int] = field(default_factory=dict)
    backlog_jobs: dict[str, int] = field(default_factory=dict)
    oldest_at_ms: dict[str, float] = field(default_factory=dict)
    open_circuits: frozenset[str] = frozenset()
    scaled: Mapping[str, Control] = field(default_factory=dict)
    cold: Mapping[str, WorkerRecord] = field(default_factory=dict)
    start_failures: Mapping[str, StartFailure] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)


class PoolWatcher:
    """Holds the current `PoolView`.

    Args:
        client: Asynchronous Redis client that returns bytes.
        clock: Updated with Redis's time by each refresh.
        backlogs: Updated by each reading.
        replay_buffer: Told each answer of Redis and the run of Redis that sent it.
        settings: Contain the refresh interval and the time after which a silent worker is dead.
        endpoints: Those of the pool's file.

    Attributes:
        clock: Redis's clock.
        reachable: Whether Redis answers and accepts writes.
        refusal: Redis's error text, if it answers but refuses.
        memory_bytes: Memory that Redis uses.
        max_memory_bytes: Memory that Redis may use; 0 if it has no limit.
        late: Queues of versions that requests were not given, for `operate.late_versions`.
    """

    def __init__(
        self,
        client: AsyncClient,
        clock: PoolClock,
        backlogs: Backlogs,
        replay_buffer: ReplayBuffer,
        settings: ControllerSettings,
        *,
        unreadable: Unreadable,
        circuits: Circuits,
        endpoints: ConfiguredEndpoints,
    ) -> None:
        self.view = PoolView()
        self.late: set[str] = set()
        self.reachable = False
        self.refusal = ""
        self.memory_bytes = self.max_memory_bytes = 0
        self._client = client
        self.clock = clock
        self._backlogs = backlogs
        self._replay_buffer = replay_buffer
        self._unreadable = unreadable
        self._circuits = circuits
        self._endpoints = endpoints
        self._last_records = LastRecords(client)
        self._interval_s = settings.heartbeat_s
        self._signer: IdSigner | None = None
        self._secret = b""
        self._run = ""
        self._was_away = False
        self._comes_back_until_s = 0.0
        self._wake = asyncio.Event()
        self._reading = asyncio.Lock()
        self._seen_at_s: dict[str, float] = {}
        self._decisions = DecisionWriter(settings.result_retention_s + settings.max_deadline_s)

    @property
    def signer(self) -> IdSigner:
        """Creates and verifies ids.

        Raises:
            LedgerUnavailableError: Redis does not answer, or has not answered yet. So callers are refused
                immediately, and not after one timeout each.
        """
        if self._signer is None or not self.reachable:
            why = (
                f"Redis refuses: {self.refusal}"
                if self.refusal
                else "Redis does not answer; try again shortly"
            )
            raise LedgerUnavailableError(why, retry_after_s=1)
        return self._signer

    @property
    def has_just_come_back(self) -> bool:
        """Whether Redis has just returned."""
        return time.monotonic() < self._comes_back_until_s

    async def is_being_restored(self) -> bool:
        """Whether missing data may soon be restored; asks Redis whether it has just returned.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.info("server")
            pipe.get(keys.EPOCH)
            server, epoch = await pipe.execute()
        if _run(server, epoch) == self._run == self._replay_buffer.run:
            return self.has_just_come_back
        self.refresh_soon()
        return True

    def hear(self, _: bytes) -> None:
        """Process a worker's announcement of a change."""
        self._wake.set()

    def refresh_soon(self) -> None:
        """Refresh now instead of at the next interval."""
        self._wake.set()

    async def run(self) -> None:
        """Refresh until cancelled. An unreachable Redis is logged once and retried."""
        while True:
            try:
                await self.refresh()
            except LedgerUnavailableError as error:
                said = refusal(error)
                if self.reachable or said not in ("", self.refusal):
                    logger.warning("%s; using the last known state of the pool, retrying", error.detail)
                self.reachable, self._was_away, self.refusal = False, True, said
                # Pooled connections may be half-open, and detecting each would cost a timeout.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            except WireError as error:
                self._unreadable.note("pool_entry", "", error.detail)
            except Exception:
                # An unexpected record must not end the task: routing would use this view for ever.
                logger.exception("the pool could not be read; retrying each heartbeat")
            with contextlib.suppress(TimeoutError):
                is_calm = self.reachable and not self.has_just_come_back
                pause_s = self._interval_s if is_calm else min(AWAY_S, self._interval_s)
                await asyncio.wait_for(self._wake.wait(), pause_s)
            self._wake.clear()

    async def refresh(self) -> None:
        """Read the pool once, in two round trips. One reading at a time: an older one must not replace a newer one.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        async with self._reading:
            await self._refresh()

    async def _refresh(self) -> None:
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            asked_at_s = time.monotonic()
            self._backlogs.begin_reading()
            pipe.eval(*PROBE)  # first: successful reads do not show whether jobs can be accepted
            pipe.time()
            pipe.info("server")
            pipe.info("memory")
            pipe.get(keys.EPOCH)
            pipe.get(keys.SECRET)
            pipe.zrange(keys.WORKERS, 0, -1)
            pipe.hgetall(keys.NUMBERS)
            pipe.hgetall(keys.BACKLOG)
            pipe.hgetall(keys.CONTROLS)
            pipe.hgetall(keys.START_FAILURES)
            _, redis_time, server, memory, epoch, secret, *pool = await pipe.execute()
            worker_ids, numbers, backlog, controls, failures = pool
            self.memory_bytes, self.max_memory_bytes = memory["used_memory"], memory.get("maxmemory", 0)
            self.clock.adjust(redis_time, asked_at_s)
            self._note_run(_run(server, epoch or await self._new_epoch()))
            # After a data loss Redis gets the old secret back, so that existing ids stay valid.
            secret = secret or await self._first(keys.SECRET, self._secret or os.urandom(32))
            if secret != self._secret:
                self._secret, self._signer = secret, IdSigner(secret)
            await self._replay_buffer.check_run(self._run, asked_at_s)
            numbers = self._with_former(self._counts(numbers))
            jobs = {queue: jobs for queue, jobs in self._counts(backlog).items() if jobs > 0}
            records, oldest_at_ms = await self._read_records(worker_ids, jobs)
            await self._renew_view(
                records,
                numbers,
                jobs,
                oldest_at_ms,
                read_table(controls),
                start_failures.read(failures, self.clock.now_ms()),
            )
        if not self.reachable:
            logger.info("Redis answers")
        self.reachable, self.refusal = True, ""

    def _note_run(self, run: str) -> None:
        if self._was_away or self._run not in ("", run):
            self._comes_back_until_s = time.monotonic() + HEARTBEATS_TO_COME_BACK * self._interval_s
            self._decisions.forget()
        self._run, self._was_away = run, False

    def _with_former(self, numbers: dict[str, int]) -> dict[str, int]:
        """The numbers, plus former ones if Redis has just returned: workers register again with their heartbeat."""
        if not self.has_just_come_back:
            return numbers
        taken = set(numbers.values())
        former = {queue: number for queue, number in self.view.numbers.items() if number not in taken}
        return former | numbers

    async def _new_epoch(self) -> bytes | None:
        with contextlib.suppress(ResponseError):  # a full Redis stores it when it has room again
            return await self._first(keys.EPOCH, os.urandom(16))
        return None

    async def _first(self, key: str, value: bytes) -> bytes:
        # Only if it is missing, because a full Redis refuses the write.
        await self._client.set(key, value, nx=True)
        return cast(bytes, await self._client.get(key))

    async def _read_records(
        self, worker_ids: list[bytes], backlog: Collection[str]
    ) -> tuple[tuple[WorkerRecord, ...], dict[str, float]]:
        """The records of live workers, and when the oldest job of each queue with a backlog was accepted, in ms."""
        pipe = self._client.pipeline(transaction=False)
        names = [worker_id.decode("utf-8", "replace") for worker_id in worker_ids] or [""]
        pipe.mget([keys.worker(name) for name in names])
        # Killed workers never remove themselves from the list; their records expire.
        pipe.zremrangebyscore(keys.WORKERS, "-inf", self.clock.now_ms() - SWEEP_AFTER_MS)
        for queue in backlog:
            pipe.zrange(keys.pending(queue), 0, 0, withscores=True)
        raw, _, *oldest = await pipe.execute()
        records = tuple(record for record in map(self._readable, names, raw) if record)
        return records, {
            queue: float(first[0][1]) for queue, first in zip(backlog, oldest, strict=True) if first
        }

    async def _renew_view(
        self,
        records: tuple[WorkerRecord, ...],
        numbers: dict[str, int],
        backlog: dict[str, int],
        oldest_at_ms: dict[str, float],
        table: Table,
        failures: Mapping[str, StartFailure],
    ) -> None:
        waits_ms = self._backlogs.refresh(records, backlog)
        ready = {record.queue for record in records if record.state == "ready"}
        self._circuits.read(records)
        circuits = dict(self._circuits.exclusions(ready))
        controlled = dict(exclusions(table, {*numbers, *ready}))
        before, configured = self.view.snapshot, self._endpoints.read()
        last_records = await self._last_records.refresh(records, _may_be_cold(numbers, configured))
        snapshot = build_snapshot(
            records,
            numbers,
            waits_ms,
            excluded=merged(controlled, circuits, ready),
            configured=configured,
            recent_models=self._recent_models(records, numbers),
            last_records=last_records,
            before=before,
        )
        cold = {each.queue for each in snapshot.cold.values()}
        self.view = PoolView(
            records=records,
            open_circuits=frozenset(circuits),
            scaled=scaled(table),
            numbers=numbers,
            backlog_jobs=backlog,
            oldest_at_ms=oldest_at_ms,
            cold={each.queue: each for each in last_records if each.queue in cold},
            start_failures=failures,
            snapshot=snapshot,
        )
        self.late |= passed_over(before)
        await self._write_decisions(before)

    async def _write_decisions(self, before: Snapshot) -> None:
        """Write the decisions of a snapshot; some routes are decided only when a request asks for them."""
        pipe = self._client.pipeline(transaction=False)
        for decision, document in self._decisions.due(before.explanations()):
            pipe.set(keys.decision(decision), document, px=self._decisions.lives_ms)
        with contextlib.suppress(ResponseError):  # a full Redis keeps no explanations
            await pipe.execute()

    def _recent_models(self, records: Iterable[WorkerRecord], queues: Iterable[str]) -> Collection[str]:
        """Models that have a live worker, or had one until recently, unless their versions were forgotten."""
        now_s = time.monotonic()
        self._seen_at_s |= {record.model_name: now_s for record in records}
        self._seen_at_s = {name: at for name, at in self._seen_at_s.items() if at > now_s - RESTART_S}
        return self._seen_at_s.keys() & {keys.model_of(queue)[0] for queue in queues}

    def _counts(self, raw: dict[bytes, bytes]) -> dict[str, int]:
        """A hash of counts by queue, without invalid entries."""
        found = {}
        for name, value in raw.items():
            queue = name.decode("utf-8", "replace")
            try:
                if not keys.is_queue(queue):
                    raise ValueError("not a queue name")
                found[queue] = int(value)
            except ValueError as error:
                self._unreadable.note("pool_entry", queue, error)
        return found

    def _readable(self, worker_id: str, data: bytes | None) -> WorkerRecord | None:
        if data is None:
            return None
        try:
            record = decode_record(data)
        except WireError as error:
            self._unreadable.note("worker_record", worker_id, f"left out: {error.detail}")
            return None
        problem = figure_problem(record.metric, record.figure)
        if problem:
            self._unreadable.note("worker_record", worker_id, problem)
            warnings = (*record.warnings, problem)
            return msgspec.structs.replace(record, val_accuracy=None, metric_value=None, warnings=warnings)
        return record


def _may_be_cold(queues: Iterable[str], configured: Mapping[str, Endpoint]) -> frozenset[str]:
    """The queues for whose versions requests may queue without a ready worker."""
    if all(each.cold == "refuse" for each in configured.values()):
        return frozenset()
    return frozenset(each for each in queues if may_be_cold(configured, *keys.model_of(each)))


def _run(server: dict[str, Any], epoch: bytes | None) -> str:
    """Identifies a run of Redis together with its data."""
    return f"{server['run_id']}/{epoch.hex() if epoch else ''}"
