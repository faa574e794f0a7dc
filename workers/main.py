"""A worker: the supervisor looks up the version and forks; the serving process loads, warms up and consumes."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

from app.celery_app import create_celery
from app.clock import PoolClock
from app.freed_memory import reuse_memory
from app.ledger.worker_ledger import WorkerLedger, keep_outcome
from app.logs import add_context
from app.quality import VAL_ACCURACY
from app.redis import keys
from app.redis.client import connect, ledger_errors
from app.redis.refusals import refusal
from app.redis.sentinel import primary_of, watch
from app.server_errors import LedgerUnavailableError, WorkerNumberTakenError
from app.settings import WorkerSettings
from app.version_controls import retirement
from app.worker_record import MANAGER, WorkerRecord, assign_number, open_jobs, record_version
from workers import model, requirements_check
from workers.batch_runner import FINISH_RETRY_S, TIMED_OUT, BatchRunner
from workers.batch_traces import open_traces
from workers.consumer.celery_worker import consume
from workers.model_lookup import Aliases, ModelVersion
from workers.process import (
    alias_watch,
    follower_files,
    fork_client,
    prefork_supervisor,
    supervised_fork,
    temporary_folder,
)
from workers.process.alias_watch import AliasWatch
from workers.process.drain import Drain
from workers.process.followed_worker import FollowedWorker
from workers.process.follower_files import Said, Told
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker
from workers.process.prefork_supervisor import TellReady
from workers.process.time_limit import TimeLimit, Watchdog
from workers.signature import read_outputs
from workers.warm_up import LoadedModel

if TYPE_CHECKING:
    from workers.handover import Handover

logger = logging.getLogger(__name__)
EXIT_STUCK = prefork_supervisor.EX_SOFTWARE
STOP_GRACE_S = 5.0
KEPT_BYTES = 2**28  # of freed memory: the arrays between the layers of a model
RETIRED_POLL_S = 1.0
DIFFERENCES_SHOWN = 32  # limits the size of a record, which is written each second
# Thread switch interval in seconds. With the default, a heartbeat would delay a batch by 5 ms.
SWITCH_INTERVAL_S = 0.0005
# New containers until the collector looks for cycles. A batch of single rows makes about 1,000; with the default of
# 700 they would be alive during a collection, and move to the generation of objects that are traversed for long.
COLLECT_AFTER = 10_000


def run(settings: WorkerSettings, handed: Handover | None = None) -> NoReturn:
    """Serve one model version until SIGTERM or SIGINT, which start a drain; then end the process.

    The slow steps run once; then a serving process is forked. If it dies, another one is forked.

    Args:
        handed: Results of the outer worker, if this worker runs in the version's own environment.

    Raises:
        ModelError: The version does not exist or cannot be served.
        UnavailableError: MLflow or Redis does not answer.
        WorkerNumberTakenError: The configured number belongs to another version.
        QueueTakenError: Live workers serve another model of the same name and version.
    """
    gc.disable()  # imports create a million objects and hardly any garbage; each serving process enables it again
    # Read when a library loads OpenMP. By default each worker would use all cores, at a multiple of the time per row.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.torch_threads))
    # Until Celery takes over: there is nothing to drain yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.env_manager == "uv":
        fork_client.require_own_process()  # it becomes another Python
    above = supervised_fork.above()
    if above:
        marker, folder, found = above.marker, above.folder, above.found(ModelVersion)
    elif handed:
        marker, folder, found = InFlightMarker(), handed.folder, handed.found
    else:
        marker, folder, found = InFlightMarker(), temporary_folder.make(), None
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    if not above:
        signal.signal(
            prefork_supervisor.LEAVE_ROUTING, lambda *_: marker.leave()
        )  # serving processes inherit it
        atexit.register(remove)
    if found is None:
        found = _prepare(settings, folder)
        if above:
            above.keep(found)
    model.preload(found)
    differing = requirements_check.differences(found.path)
    if differing:
        logger.warning("%s was logged with %s", found.uri, requirements_check.described(differing))
    for warning in found.warnings:
        logger.warning("%s: %s", found.uri, warning)

    def serve(tell_ready: TellReady) -> None:
        gc.enable()
        atexit.unregister(remove)  # the next serving process reads the files again
        # Not an exception: the model's loading code may catch it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
        # A running pass may use its full time limit, and its outcome may have to wait for Redis.
        stop_limit_s = settings.inference_timeout_s + FINISH_RETRY_S + STOP_GRACE_S
        _serve(settings, found, marker, partial(tell_ready, stop_limit_s))

    if above:
        serve(above.tell_ready)
        prefork_supervisor.leave(0)
    prefork_supervisor.supervise(serve, remove, marker.end)


def _prepare(settings: WorkerSettings, folder: str) -> ModelVersion:
    """Look the version up, and wait while it is retired; with an environment of its own, become a process in it."""
    _require_redis(settings)
    if settings.model_version.isdigit():
        _wait_while_retired(settings, int(settings.model_version), lambda: None)
    found = model.find(settings, folder)
    if not settings.model_version.isdigit():
        _wait_while_retired(settings, found.version, _alias_look(settings, found))
    if settings.env_manager == "uv":
        from workers import model_environment

        model_environment.become(found, settings, folder)
    return found


def _serve(
    settings: WorkerSettings, found: ModelVersion, marker: InFlightMarker, tell_ready: Callable[[], None]
) -> None:
    predecessor = _close_hung_job(marker, settings)
    loaded = model.load(found, settings)
    folder = follower_files.own_folder()
    told = follower_files.read(folder, Told) if folder else None
    record = _new_record(settings, found, loaded, told)
    clock = PoolClock()
    heartbeat = _new_heartbeat(settings, record, clock, marker, predecessor)
    # A separate connection: the heartbeat never waits for the ledger, and the ledger never for a free connection.
    jobs = WorkerLedger(
        connect(settings),
        record.worker_id,
        record.queue,
        settings.result_retention_s,
        failed_heartbeats=heartbeat.failed_heartbeats,
    )
    limit = TimeLimit(settings.inference_timeout_s)
    traces = open_traces(settings)
    runner = BatchRunner(
        jobs, loaded, heartbeat, clock, limit, marker, max_attempts=settings.max_attempts, traces=traces
    )
    watchdog = Watchdog(limit, settings.inference_timeout_s, partial(_end, runner, heartbeat))
    marker.serves(record.worker_id)
    known = {"model": record.model_name, "version": record.model_version, "worker_id": record.worker_id}
    add_context(lambda: known | runner.running())
    limit.install()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _spare_collections()
    reuse_memory(KEPT_BYTES)
    heartbeat.start()
    watchdog.start()
    drain = Drain(record, heartbeat, marker, connect(settings), settings.worker_ttl_s)
    drain.start()
    followed = None
    if folder and told:
        followed = FollowedWorker(folder, told, record, heartbeat, drain)
        followed.start()
    aliases = _watch_aliases(settings, found, heartbeat, followed)
    aliases.start()
    try:
        imports = [name.strip() for name in settings.worker_imports.split(",") if name]
        url = settings.effective_redis_url
        with watch(url):
            consume(create_celery(settings), record, runner, heartbeat, tell_ready, imports, primary_of(url))
    finally:
        aliases.close()
        drain.close()
        if followed:
            followed.close()
        watchdog.close()
        heartbeat.close()
        if traces:
            traces.close()


def _new_heartbeat(
    settings: WorkerSettings, record: WorkerRecord, clock: PoolClock, marker: InFlightMarker, predecessor: str
) -> Heartbeat:
    # A heartbeat on a half-open connection times out early enough for the next heartbeat to be in time.
    pulse = connect(settings, timeout_s=min(settings.redis_timeout_s, settings.heartbeat_s))
    return Heartbeat(
        pulse,
        record,
        clock,
        settings.heartbeat_s,
        predecessor=predecessor,
        ready_file=settings.ready_file,
        marker=marker,
    )


def _spare_collections() -> None:
    """Let the garbage collector skip the model and its libraries, which live as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _watch_aliases(
    settings: WorkerSettings, found: ModelVersion, heartbeat: Heartbeat, followed: FollowedWorker | None
) -> AliasWatch:
    if not followed:
        return AliasWatch(settings, found, heartbeat.aliases_read)

    def publish(aliases: Aliases, age_s: float) -> None:
        heartbeat.aliases_read(aliases, age_s)
        followed.aliases_read(aliases)

    return AliasWatch(
        settings, found, publish, alias_watch.FOLLOWED_S, unstamped_s=alias_watch.FOLLOWED_UNSTAMPED_S
    )


def _close_hung_job(marker: InFlightMarker, settings: WorkerSettings) -> str:
    """Close the job in which the previous process hung, if any; returns that process's worker id, or empty."""
    noted = marker.read()
    if noted is None:
        return ""
    if noted.batch_id and marker.ended_at_s - noted.since_s >= settings.inference_timeout_s:
        try:
            with connect(settings) as client:
                keep_outcome(client, noted.batch_id, noted.index, TIMED_OUT)
        except LedgerUnavailableError as error:
            logger.warning("job %d of batch %s may hang again: %s", noted.index, noted.batch_id, error.detail)
    return noted.worker_id


def _new_record(
    settings: WorkerSettings, found: ModelVersion, loaded: LoadedModel, told: Told | None
) -> WorkerRecord:
    queue = keys.queue_name(found.name, found.version)
    is_accuracy = settings.metric == VAL_ACCURACY
    with ledger_errors(), connect(settings) as client:
        try:
            number = assign_number(client, queue, settings.worker_number)
        except WorkerNumberTakenError as error:
            if not told:
                raise
            # The number belongs to an earlier version of the alias.
            number = assign_number(client, queue, None)
            logger.warning("%s; %s has the number %d", error.detail, found.uri, number)
    return WorkerRecord(
        worker_id=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}",
        worker=number,
        queue=queue,
        model_name=found.name,
        model_version=found.version,
        run_id=found.run_id,
        val_accuracy=found.quality.value if is_accuracy else None,
        metric=settings.metric,
        direction=settings.metric_direction,
        metric_value=None if is_accuracy else found.quality.value,
        val_accuracy_source=found.quality.source,
        dataset=found.quality.dataset,
        dataset_digest=found.quality.dataset_digest,
        dataset_rows=found.quality.dataset_rows,
        val_correct=found.quality.correct,
        input=loaded.contract,
        schema_version=record_version(loaded.contract),
        outputs=read_outputs(found.signature),
        example=loaded.example,
        state="starting",
        started_at_ms=0,
        heartbeat_at_ms=0,
        host=socket.gethostname(),
        pid=os.getpid(),
        main_pid=told.follower_pid if told else fork_client.client_pid() or os.getppid(),
        device=loaded.device,
        model_id=found.model_id,
        registry=settings.shown_registry,
        warnings=found.warnings,
        requirements=requirements_check.differences(found.path)[:DIFFERENCES_SHOWN],
        follows=told.alias if told else "",
        managed_by=os.environ.get(MANAGER, ""),
    )


def _end(runner: BatchRunner, heartbeat: Heartbeat) -> None:
    """End the process from a thread while the main thread is stuck; the supervisor forks another one."""
    try:
        runner.close_hung_job()
        heartbeat.close()  # without a record its batch is sent again immediately
    finally:
        os._exit(EXIT_STUCK)


def _wait_while_retired(settings: WorkerSettings, version: int, look: Callable[[], None]) -> None:
    """Wait if operators have retired the version, and its queue is empty.

    Process managers such as Docker start a worker again that has ended. Under `modelyard up`, and as the next version
    of an alias follower, which do not, it ends with status 0.

    Args:
        look: Called again and again meanwhile.
    """
    why = _retirement(settings, version)
    if not why:
        return
    name, word = f"{settings.model_name}/{version}", settings.model_version
    is_next = word.isdigit() and follower_files.own_folder()
    is_managed = bool(os.environ.get(MANAGER) or is_next)
    then = "then start this worker again" if is_managed else "which this worker waits for"
    moved = "" if word.isdigit() else f"; it also waits for {word} to move"
    text = f"{name} is {why}, and is not served; `modelyard enable {name}` puts it back into service, {then}{moved}"
    logger.warning("%s", text)
    if is_managed:
        follower_files.report_end(text, is_away=False)
        fork_client.leave()
    while _retirement(settings, version) != "":
        look()
        time.sleep(RETIRED_POLL_S)
    logger.info("%s is in service again", name)


def _alias_look(settings: WorkerSettings, found: ModelVersion) -> Callable[[], None]:
    """Tells the alias follower of a moved alias, and ends this process once the other version's worker is ready."""
    folder = follower_files.own_folder()
    assert folder  # only a follower starts a worker with an alias

    def publish(aliases: Aliases, _age_s: float) -> None:
        follower_files.write(folder, Said(found.version, aliases.version_of(settings.model_version)))

    watch, next_s = AliasWatch(settings, found, publish), 0.0

    def look() -> None:
        nonlocal next_s
        told = follower_files.read(folder, Told)
        if told and told.successor:
            logger.info("%s is version %d now, whose worker is ready", settings.model_version, told.successor)
            fork_client.leave()
        if time.monotonic() >= next_s:
            watch.look()
            next_s = time.monotonic() + alias_watch.FOLLOWED_S

    return look


def _retirement(settings: WorkerSettings, version: int) -> str | None:
    """Why a version is retired and has no jobs; empty if it is to be served, None if Redis does not tell."""
    queue = keys.queue_name(settings.model_name, version)
    try:
        with ledger_errors(), connect(settings) as client:
            control, jobs = retirement(client, queue), open_jobs(client, queue)
    except LedgerUnavailableError:  # it is away, or its users are those of an older release
        return None
    return str(control) if control and not jobs else ""


def _require_redis(settings: WorkerSettings) -> None:
    try:
        with ledger_errors(), connect(settings) as client:
            client.ping()
    except LedgerUnavailableError as error:
        if refusal(error):
            raise
        raise LedgerUnavailableError(
            f"{error.detail.partition(';')[0]} at {settings.shown_redis_url}; start a pool here with "
            f"`modelyard up`, or set REDIS_URL to a running server"
        ) from error
