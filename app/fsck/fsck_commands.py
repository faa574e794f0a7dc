"""The scripts of the consistency check, each rendered by one typed function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.redis import keys
from app.redis.script import Call, Value, load


def survey_keys(page: Sequence[str]) -> Call:
    """Inspect each key of a page."""
    return Call(load("survey_keys"), list(page), [])


def survey_batches(queue: str, batch_ids: Sequence[str]) -> Call:
    """Inspect the batches of a page in the indexes of their queue."""
    return Call(load("survey_batches"), [*_indexes(queue), *map(keys.batch, batch_ids)], list(batch_ids))


def survey_queue(queue: str, grace_ms: int) -> Call:
    """Check whether a queue is behind."""
    names = [keys.pending(queue), keys.deadlines(queue), keys.running(queue), queue]
    return Call(load("survey_queue"), names, [grace_ms])


def sum_backlog(queue: str, most_batches: int, *, repair: bool) -> Call:
    """Compare a queue's backlog with the sum of its open jobs."""
    return Call(
        load("sum_backlog"), [keys.BACKLOG, keys.open_jobs(queue)], [queue, most_batches, int(repair)]
    )


def drop_entry(queue: str, entry: bytes) -> Call:
    """Remove an entry that is not a batch id from a queue's indexes."""
    return Call(load("drop_entry"), _indexes(queue), [entry])


def expire_if_endless(name: str, ttl_ms: int) -> Call:
    """Give a key a time to live, unless it has one."""
    return Call(load("expire_if_endless"), [name], [ttl_ms])


def delete_if_same(name: str, value: bytes) -> Call:
    """Delete a string, unless it has changed."""
    return Call(load("delete_if_same"), [name], [value])


def trim_messages(queue: str, messages: Mapping[bytes, str]) -> Call:
    """Remove messages, each with its batch's id, from a queue, unless the batch is waiting."""
    args: list[Value] = []
    for message, batch_id in messages.items():
        args += [batch_id, message]
    return Call(load("trim_messages"), [queue, keys.pending(queue)], args)


def _indexes(queue: str) -> list[str]:
    return [keys.pending(queue), keys.deadlines(queue), keys.running(queue), keys.open_jobs(queue)]
