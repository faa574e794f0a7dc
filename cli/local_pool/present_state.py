"""The running pool as Redis has it: live workers, open jobs, and what operators decided about versions."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from app.pool_file import NamedVersion
from app.server_errors import ModelyardError
from app.settings import Settings
from app.version_controls import SCALE, Control, Table, read_table, scaled
from cli.local_pool.desired_state import Target

if TYPE_CHECKING:
    from app.redis.client import Client
    from app.worker_record import WorkerRecord
    from modelyard.schemas import StartFailure

PROBE_TIMEOUT_S = 2.0


def redis_answers(url: str) -> bool:
    """Whether a Redis server answers and has loaded its data."""
    try:
        with _connected(url) as connection:
            return bool(connection.ping())
    except (ModelyardError, ValueError):  # the last one: not a Redis URL
        return False


@contextmanager
def _connected(url: str) -> Iterator[Client]:
    """A connection for one question; every error of Redis is a `ModelyardError`."""
    from app.redis.client import connect_url, ledger_errors

    with ledger_errors(), connect_url(url, PROBE_TIMEOUT_S) as connection:
        yield connection


def ready_pids(workers: Mapping[int, WorkerRecord]) -> dict[int, int]:
    """Process ids of the serving processes of ready workers, of the result of `local_workers`, by the same key."""
    return {main_pid: record.pid for main_pid, record in workers.items() if record.state == "ready"}


def local_workers(redis_url: str) -> dict[int, WorkerRecord]:
    """Records of the workers on this machine, by process id of their supervisor; none while Redis does not answer.

    Read from Redis, because a controller with API keys would require one.
    """
    from app.worker_record import records_of_host

    try:
        with _connected(redis_url) as connection:
            records = records_of_host(connection, socket.gethostname())
    except ModelyardError:
        return {}
    records.sort(key=lambda record: record.started_at_ms)  # the record of a dead child stays for a while
    return {record.main_pid: record for record in records}


def open_jobs(settings: Settings, named: NamedVersion) -> int | None:
    """Jobs of a version that have no outcome yet; None while Redis does not answer."""
    from app import worker_record
    from app.redis import keys

    try:
        with _connected(settings.effective_redis_url) as connection:
            return worker_record.open_jobs(connection, keys.queue_name(*named))
    except (ModelyardError, ValueError):
        return None


def controls(settings: Settings) -> Table | None:
    """Operators' decisions about versions; None while Redis does not answer."""
    from app.redis import keys

    try:
        with _connected(settings.effective_redis_url) as connection:
            return read_table(cast(dict[bytes, bytes], connection.hgetall(keys.CONTROLS)))
    except (ModelyardError, ValueError):
        return None


def retired(table: Table) -> frozenset[NamedVersion]:
    """The retired versions."""
    from app.redis import keys

    return frozenset(
        NamedVersion(*keys.model_of(queue))
        for queue, control in table.items()
        if control.state == "retired" and keys.is_queue(queue)
    )


def scaled_versions(table: Table, since_ms: float = 0) -> dict[NamedVersion, Control]:
    """The numbers of workers that operators asked for after a time."""
    from app.redis import keys

    return {
        NamedVersion(*keys.model_of(queue)): control
        for queue, control in scaled(table).items()
        if keys.is_queue(queue) and control.at_ms > since_ms
    }


def in_service(targets: Iterable[Target], table: Table, edited_at_ms: float) -> tuple[Target, ...]:
    """The versions that operators did not retire, with the numbers of workers that they asked for.

    Args:
        edited_at_ms: When the file was last edited, which ends what was asked for before; 0 without a file.
    """
    out, asked = retired(table), scaled_versions(table, edited_at_ms)
    kept = []
    for target in targets:
        control = asked.get(target.named)
        if control and control.replicas:
            target = replace(target, replicas=(control.replicas, control.replicas))
        if target.named not in out:
            kept.append(target)
    return tuple(kept)


def forget_scale(settings: Settings, named: NamedVersion) -> None:
    """Remove the number of workers that an operator asked for."""
    from app.redis import keys

    with suppress(ModelyardError, ValueError), _connected(settings.effective_redis_url) as connection:
        connection.hdel(keys.CONTROLS, SCALE + keys.queue_name(*named))


def write_start_failures(
    settings: Settings, failures: Mapping[NamedVersion, StartFailure], over: Iterable[NamedVersion]
) -> None:
    """Tell the controllers why wanted versions do not start, and which ones do, or are not wanted any more."""
    from app import start_failures
    from app.clock import to_ms
    from app.redis import keys

    by_queue = {keys.queue_name(*named): each for named, each in failures.items()}
    with suppress(ModelyardError, ValueError), _connected(settings.effective_redis_url) as connection:
        now_ms = to_ms(*connection.time())
        start_failures.write(connection, by_queue, [keys.queue_name(*named) for named in over], now_ms)
