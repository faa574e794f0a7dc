"""Examines a running pool in small steps for inconsistencies, without changing anything.

Memory is bounded for any backlog: all data is read in pages. One script reads each page, so that related data is read
at the same moment. A finding may be temporary; `app.fsck.consistency_check` examines the pool again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

from app.fsck.findings import SURVEYED, BatchState, Examination, text
from app.fsck.fsck_commands import sum_backlog, survey_batches, survey_keys, survey_queue
from app.ledger import ids, marks, wire
from app.ledger.wakeup_message import batch_id_of, unannounced
from app.redis import keys
from app.redis.client import AsyncClient, ResponseError, ledger_errors
from app.redis.script import run
from app.server_errors import NewerWireError, WireError
from app.worker_record import WorkerRecord, decode_record, identity, is_same_model

PAGE = 64  # a script blocks Redis: a page takes about a millisecond
MOST_MESSAGES = 100_000
MOST_BATCHES_COUNTED = 100_000
_OF_THE_LEDGER = (
    ("EXEC",),
    ("HSET", keys.batch("any"), "head", ""),
    ("ZADD", keys.pending("any"), "0", ""),
    ("LPUSH", keys.queue_name("any", 1), ""),
    ("DEL", keys.batch("any")),
)
GRACE_MS = 3000  # for work in transit, and for a controller to close overdue batches


class Examiner:
    """Reads a live pool.

    Args:
        client: Asynchronous Redis client that returns bytes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def examine(self) -> Examination:
        """Examine everything once.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        seen = Examination()
        with ledger_errors():
            if await self._check_persistence(seen):
                await self._check_default_user(seen)
            queues, records, live = set[str](), list[str](), set[str]()
            async for page in self._keys():
                await self._check_keys(seen, page, queues, records)
            await self._check_workers(seen, records, live)
            for name in (keys.NUMBERS, keys.BACKLOG):
                if ("wrong_type", name) not in seen.findings:
                    queues |= {text(each) for each in cast(list[bytes], await self._client.hkeys(name))}
            for queue in sorted(filter(keys.is_queue, queues)):
                await self._check_queue_once(seen, queue, live)
        return seen

    async def examine_service(self, queues: Iterable[str]) -> Examination:
        """The part of an examination that needs no scan, for a controller: what Redis says of itself, overdue batches.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        seen = Examination()
        with ledger_errors():
            await self._check_persistence(seen)
            for queue in queues:
                # A key of the wrong type: `examine` finds it.
                with contextlib.suppress(ResponseError, WireError):
                    await self._check_overdue(seen, queue)
        return seen

    async def _check_persistence(self, seen: Examination) -> bool:
        """Check for data that Redis has lost or may lose; whether it has an append-only file."""
        with contextlib.suppress(ResponseError):  # wrong type: that is a separate finding
            data = cast(bytes | None, await self._client.get(keys.LOSS))
            if data and (loss := marks.decode(data)):
                seen.add("data_lost", "Redis", f"it lost {loss}; jobs accepted in that time are unknown")
        has_file = bool((await self._client.info("persistence")).get("aof_enabled"))
        if not has_file:
            seen.notes.append(
                "Redis has no append-only file (appendonly no) and loses its data when it ends; "
                "set appendonly yes"
            )
        policy = (await self._client.info("memory")).get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            seen.notes.append(
                f"Redis evicts keys, including jobs, when it is full ({policy}): set noeviction"
            )

        return has_file

    async def _check_default_user(self, seen: Examination) -> None:
        if refusal := await self._refuses_to_load():
            detail = "at its next start Redis may skip the transactions of its append-only file and lose the ledger: "
            detail += f"{refusal}. Run ACL SETUSER default ~* &* +@all, and write it to the ACL file"
            seen.add("default_user_restricted", "Redis", detail)

    async def _refuses_to_load(self) -> str:
        """Why the default user, as whom the append-only file is loaded, may not run its commands; empty if it may."""
        for command in _OF_THE_LEDGER:
            try:
                answer = await cast(Any, self._client).acl_dryrun("default", *command)
            except ResponseError:
                return ""  # older than Redis 7, or this user may not ask
            if text(answer) != "OK":
                return text(answer)
        return ""

    async def _keys(self) -> AsyncIterator[list[str]]:
        cursor = 0
        while True:
            cursor, page = await self._client.scan(cursor, match=f"{keys.PREFIX}:*", count=PAGE)
            yield [text(name) for name in page]
            if not cursor:
                return

    async def _check_keys(
        self, seen: Examination, page: list[str], queues: set[str], records: list[str]
    ) -> None:
        unfinished = []
        rows = await run(self._client, survey_keys(page)) if page else []
        for name, (type_, ttl_ms, has_head, _, has_out) in zip(page, rows, strict=True):
            kind, found = keys.kind_of(name), text(type_)
            if found == "none":
                continue  # it has gone since
            if kind is None:
                seen.add("unknown_key", name, f"a {found} that Modelyard does not write")
                continue
            seen.count(f"keys {kind.prefix}")
            if kind.type and found != kind.type:
                seen.add("wrong_type", name, f"is a {found}, should be a {kind.type}")
            elif kind.expires and ttl_ms == -1:
                seen.add("no_ttl", name, "has no time to live and would never expire")
            if kind.names_queue:
                queues.add(name.removeprefix(kind.prefix))
            elif kind.type == "string" and kind.prefix == keys.worker("") and found == "string":
                records.append(name)
            elif kind.prefix == keys.batch("") and found == "hash":
                batch_id = name.removeprefix(kind.prefix)
                if has_out and not has_head:
                    seen.add("outcome_without_job", batch_id, "its record has an outcome but no head")
                elif not has_out and ids.is_well_formed(batch_id):
                    unfinished.append(batch_id)
        await self._check_unfinished(seen, unfinished)

    async def _check_unfinished(self, seen: Examination, batch_ids: list[str]) -> None:
        """Check that records without an outcome are in the indexes of the queue that their head names."""
        pipe = self._client.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipe.hget(keys.batch(batch_id), "head")
        by_queue: dict[str, list[str]] = {}
        for batch_id, raw in zip(batch_ids, await pipe.execute(raise_on_error=False), strict=True):
            try:
                by_queue.setdefault(wire.decode_head(raw or b"").queue, []).append(batch_id)
            except NewerWireError:
                seen.count("batches of a newer release")
            except (WireError, TypeError) as error:
                detail = f"its record cannot be read: {error}"
                seen.add(
                    "unreadable_batch", batch_id, detail, batch_id=batch_id, queue=await self._find(batch_id)
                )
        for queue, found in by_queue.items():
            await self._check_batches(seen, queue, found)

    async def _find(self, batch_id: str) -> str:
        """The queue that lists a batch, or empty."""
        names = [text(each) for each in cast(list[bytes], await self._client.hkeys(keys.BACKLOG))]
        for queue in filter(keys.is_queue, names):
            if await self._client.zscore(keys.pending(queue), batch_id) is not None:
                return queue
        return ""

    async def _check_workers(self, seen: Examination, names: list[str], live: set[str]) -> None:
        raw = cast(list[bytes | None], await self._client.mget(names)) if names else []
        first: dict[str, WorkerRecord] = {}
        for name, data in zip(names, raw, strict=True):
            try:
                if data is not None:
                    record = decode_record(data)
                    live.add(record.queue)
                    other = first.setdefault(record.queue, record)
                    if not is_same_model(other, record):
                        detail = f"its workers serve two models: {identity(other)}; {identity(record)}"
                        seen.add("mixed_models", record.queue, detail, queue=record.queue)
            except NewerWireError as error:
                seen.notes.append(f"{name}: {error.detail}")
            except WireError as error:
                seen.add("unreadable_worker", name, f"{error.detail}; it receives no requests")
        seen.counts["live queues"] = len(live)

    async def _check_queue_once(self, seen: Examination, queue: str, live: set[str]) -> None:
        try:
            with ledger_errors():
                await self._check_queue(seen, queue)
                await self._check_messages(seen, queue, is_live=queue in live)
                await self._check_backlog(seen, queue)
                async for page in self._indexed(queue):
                    for each in page:
                        if not ids.is_well_formed(text(each)):
                            about = {"queue": queue, "batch_id": each.decode("latin-1")}
                            seen.add(
                                "no_batch",
                                f"{queue} {each!r}",
                                "an index lists an invalid batch id",
                                **about,
                            )
                    listed = [text(each) for each in page]
                    await self._check_batches(seen, queue, list(filter(ids.is_well_formed, listed)))
        except WireError as error:
            # The key itself is a separate finding; the rest of this queue cannot be checked.
            seen.notes.append(f"{queue} was not checked further: {error.detail}")

    async def _check_queue(self, seen: Examination, queue: str) -> None:
        await self._check_overdue(seen, queue)
        # Only the oldest per queue: while it changes, the queue is being repaired.
        for batch_id in (await self.lost(queue))[:1]:
            detail = "waits without a message on its queue"
            seen.add("lost_message", batch_id, detail, queue=queue, batch_id=batch_id)

    async def _check_overdue(self, seen: Examination, queue: str) -> None:
        _, overdue = await self._behind(queue)
        if overdue:
            detail = "is past its last deadline and not closed; check that a controller runs"
            seen.add("overdue", overdue, detail, queue=queue, batch_id=overdue)

    async def lost(self, queue: str) -> list[str]:
        """Waiting batches without a message in the queue, oldest first."""
        lost, _ = await self._behind(queue)
        if not lost:
            return []
        # The order is only a hint, because resent batches overtake others. The messages in the queue decide.
        told = set[str]()
        async for page in self.messages(queue):
            told |= {batch_id_of(message) or "" for message, _ in page}.intersection(lost)
        return [each for each in lost if each not in told]

    async def _behind(self, queue: str) -> tuple[list[str], str]:
        """Batches with a lost message, and the batch that is overdue for longest."""
        now_ms, flat, message, overdue = await run(self._client, survey_queue(queue, GRACE_MS))
        unclaimed = [(text(each), float(at_ms)) for each, at_ms in zip(flat[::2], flat[1::2], strict=True)]
        return unannounced(unclaimed, message or None, now_ms - GRACE_MS), text(overdue)

    async def _check_messages(self, seen: Examination, queue: str, *, is_live: bool) -> None:
        stale = messages = 0
        async for page in self.messages(queue):
            messages += len(page)
            stale += sum(not is_pending for _, is_pending in page)
        seen.count("messages", messages)
        if stale and is_live:
            seen.notes.append(f"{queue}: {stale} messages of deleted batches; workers skip them")
        elif stale:
            detail = f"{stale} messages of deleted batches on a queue without workers"
            seen.add("stale_messages", queue, detail, queue=queue)
        if not is_live and not messages and not await self._client.exists(keys.pending(queue)):
            number = await self._client.hget(keys.NUMBERS, queue)
            if number is not None:
                seen.notes.append(
                    f"worker number {text(number)} is reserved for {queue}, which no worker serves now"
                )

    async def messages(self, queue: str) -> AsyncIterator[list[tuple[bytes, bool]]]:
        """Messages on a queue, oldest first, each with whether its batch has no outcome yet."""
        for start in range(0, MOST_MESSAGES, PAGE):
            page = cast(list[bytes], await self._client.lrange(queue, -start - PAGE, -start - 1))
            if not page:
                return
            batch_ids = [batch_id_of(message) or "" for message in page]
            scores = await self._client.zmscore(keys.pending(queue), batch_ids)
            yield [(message, score is not None) for message, score in zip(page, scores, strict=True)][::-1]

    async def _check_backlog(self, seen: Examination, queue: str) -> None:
        answer = await run(self._client, sum_backlog(queue, MOST_BATCHES_COUNTED, repair=False))
        if answer is None:
            seen.notes.append(f"{queue}: the backlog was not checked: the queue has too many batches")
        elif answer:
            count, total = map(text, answer)
            seen.add(
                "backlog_wrong", queue, f"the backlog counts {count} jobs; {total} are open", queue=queue
            )

    async def _indexed(self, queue: str) -> AsyncIterator[list[bytes]]:
        """Pages of the batches in each of a queue's indexes."""
        for scan, name in (
            (self._client.zscan, keys.pending(queue)),
            (self._client.zscan, keys.deadlines(queue)),
            (self._client.hscan, keys.running(queue)),
            (self._client.hscan, keys.open_jobs(queue)),
        ):
            cursor = 0
            while True:
                cursor, page = await cast(Any, scan)(name, cursor, count=PAGE)
                yield list(dict(page))
                if not cursor:
                    break

    async def _check_batches(self, seen: Examination, queue: str, batch_ids: list[str]) -> None:
        for start in range(0, len(batch_ids), PAGE):
            page = batch_ids[start : start + PAGE]
            rows = await run(self._client, survey_batches(queue, page))
            states = [
                BatchState(batch_id=each, queue=queue, **dict(zip(SURVEYED, row, strict=True)))
                for each, row in zip(page, rows, strict=True)
            ]
            dead = await self._dead({state.owner for state in states if state.owner})
            for state in states:
                state.judge(seen, dead)

    async def _dead(self, owners: Iterable[str]) -> set[str]:
        names = sorted(owners)
        pipe = self._client.pipeline(transaction=False)
        for owner in names:
            pipe.exists(keys.worker(owner))
        return {owner for owner, lives in zip(names, await pipe.execute(), strict=True) if not lives}
