"""The costs of a large pool: a long backlog, two controllers, many versions, memory, start: `make limits`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import redis

from app.celery_app import create_celery
from app.clock import to_ms
from app.ledger.commands import NewBatch
from app.ledger.ids import IdSigner
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.ledger.wire import BatchHead, JobEntry
from app.redis import keys
from app.redis.client import connect_async
from app.settings import ControllerSettings
from benchmarks import digit_bodies, envs, machine, package_versions, processes
from benchmarks.bench_pool import FAR_S, Pool
from benchmarks.systems import LOOPBACK, SYSTEMS
from benchmarks.wrk_load import Generator, Load, Target
from tests.pool_samples import accept

PAGE = Path(__file__).with_name("limits.md")
MODELYARD = SYSTEMS[0]
FEW_JOBS, MANY_JOBS = 100_000, 1_000_000
DRAINED_JOBS = 80_000  # of each backlog
DRAIN_LIMIT_S = 60
JOBS_PER_BATCH = (16, 64)  # as with 64 connections
# A worker that is suspended for less than three heartbeats does not count as dead. Batches are held equally long with
# and without a backlog, because a machine that idles between batches uses more CPU time for each.
LONG_BACKLOG = {
    "MODELYARD_HEARTBEAT_S": "60",
    "MODELYARD_BATCH_HOLD_MS": "4",
    "MODELYARD_BATCH_HOLD_BEHIND_MS": "4",
}
SAMPLE_BYTES = 784 * 4
AT_ONCE = 64  # batches, accepted on one connection
MEASURE_S = 5
STOPPED_S = 2
ROUNDS = 5
LISTS = ("status=open&limit=25", "status=running", "status=open&min_attempts=2", "status=open&limit=1000")
TIMES_LISTED = 20
LABELS = ("redis", "controller", "worker")
BARE = """
import os, numpy, torch
{load}
with torch.inference_mode():
    network(torch.from_numpy(numpy.zeros((2, 1, 28, 28), numpy.float32)))
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), flush=True)
"""
BARE_TORCH = "network = torch.export.load({file!r}).module()"
BARE_MLFLOW = """
import mlflow.pytorch
mlflow.set_tracking_uri({uri!r})
network = mlflow.pytorch.load_model("models:/MNIST_PyTorch_Model/1")
"""

Row = tuple[str, str]


def main() -> int:
    """Measure everything and write the page."""
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    model = digit_bodies.make_model(envs.ENVIRONMENTS)
    rows: list[Row] = []
    for measure in (start_and_memory, many_versions, two_controllers, long_backlog):
        with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as folder:
            try:
                for row in measure(Path(folder), model):
                    print(f"{row[0]:<76} {row[1]}", flush=True)
                    rows.append(row)
            finally:
                processes.stop_all()
    head = (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} by `make limits`: {machine.describe()}. All processes run on this "
        "machine. A job holds one sample of 784 float32 numbers; the words in brackets name processes.\n"
    )
    table = "".join(f"| {what} | {figure} |\n" for what, figure in rows)
    PAGE.write_text(f"# Limits\n\n{head}\n| what | figure |\n| --- | --- |\n{table}")
    return 0


def start_and_memory(folder: Path, model: digit_bodies.Model) -> Iterator[Row]:
    """Start time and memory of the processes, compared with bare Python processes.

    A worker is two processes that share most of their memory: `machine.held_bytes` counts each page once.
    """
    pool = Pool(folder, model.tracking_uri)
    pool.start_redis()
    rounds = [_start_each(pool, model) for _ in range(ROUNDS)]
    s, held = (
        {name: statistics.median(each[name][which] for each in rounds) for name in rounds[0]}
        for which in (0, 1)
    )
    yield "`modelyard serve` until it answers", f"{s['controller']:.2f} s"
    yield "bare Python process until it has run the model (loaded by MLflow)", f"{s['mlflow']:.2f} s"
    yield (
        "`modelyard worker` until it serves",
        f"{s['worker']:.2f} s, {s['worker'] / s['mlflow']:.2f} times bare MLflow ({_spread(rounds, 0, 'mlflow')})",
    )
    yield "bare Python process (loaded by MLflow): resident memory", mib(held["mlflow"])
    yield (
        "bare Python process (loaded by PyTorch): start, resident memory",
        f"{s['torch']:.2f} s, {mib(held['torch'])}",
    )
    yield (
        "worker (both processes): memory",
        f"{mib(held['worker'])}, {held['worker'] / held['torch']:.2f} times bare PyTorch "
        f"({_spread(rounds, 1, 'torch')})",
    )
    pid, worker = pool.start_controller(), pool.start_worker()
    serving = pool.serving_pid(worker)
    yield "controller: resident memory, idle", mib(machine.resident_bytes(pid))
    # The suspended worker does not count as dead yet; all callers wait.
    os.kill(serving, signal.SIGSTOP)
    generator = Generator(_target(pool, model, "?wait=20"), folder, 1000, MEASURE_S)
    time.sleep(STOPPED_S)
    yield "controller: resident memory, 1,000 waiting callers", mib(machine.resident_bytes(pid))
    os.kill(serving, signal.SIGCONT)
    generator.finish()
    yield "worker (both processes): memory after that load", mib(machine.held_bytes(worker))


def _start_each(pool: Pool, model: digit_bodies.Model) -> dict[str, tuple[float, float]]:
    """Start time in seconds and memory in bytes of each process."""
    found = {}
    for name, load in (
        ("torch", BARE_TORCH.format(file=str(model.file))),
        ("mlflow", BARE_MLFLOW.format(uri=model.tracking_uri)),
    ):
        start_s = time.monotonic()
        # Until it prints its memory: the time that Python takes to exit is not part of the start.
        with subprocess.Popen(
            [sys.executable, "-c", BARE.format(load=load)], stdout=subprocess.PIPE, text=True
        ) as bare:
            assert bare.stdout
            n_bytes = float(bare.stdout.readline())
            found[name] = (time.monotonic() - start_s, n_bytes)
    for name, start in (("worker", pool.start_worker), ("controller", pool.start_controller)):
        start_s = time.monotonic()
        pid = start()
        found[name] = (time.monotonic() - start_s, machine.held_bytes(pid))
        pool.stop(pid)
    return found


def _spread(rounds: Sequence[dict[str, tuple[float, float]]], which: int, bare: str) -> str:
    ratios = sorted(each["worker"][which] / each[bare][which] for each in rounds)
    return f"{ratios[0]:.2f} to {ratios[-1]:.2f} by round"


def many_versions(_: Path, __: digit_bodies.Model) -> Iterator[Row]:
    """CPU cost of routing and of the background refresh with 2 and with 1,000 model versions."""
    for n_versions, n_workers in ((2, 2), (1000, 2000)):
        found = package_versions.measure(n_versions, n_workers)
        yield (
            f"routing one request among {n_versions:,} versions, {n_workers:,} workers",
            f"{found.route_us:.2f} µs; by worker number {found.route_forced_us:.2f} µs",
        )
        yield (
            f"refresh of {n_workers:,} workers' records, per heartbeat",
            f"{found.refresh_ms:.1f} ms of CPU",
        )


def two_controllers(folder: Path, model: digit_bodies.Model) -> Iterator[Row]:
    """Throughput of one controller and of two on the same cores, with 256 connections."""
    pool = Pool(folder, model.tracking_uri)
    ports = (pool.port, processes.free_port())
    pool.start_redis()
    pool.start_worker()
    for port in ports:
        pool.start_controller(port)
    one, two = [], []
    for _ in range(ROUNDS):
        one.append(_together(pool, model, ports[:1], 256))
        two.append(_together(pool, model, ports, 256))
    ratios = sorted(b / a for a, b in zip(one, two, strict=True))
    yield "one controller, 256 connections", f"{statistics.median(one):,.0f} predictions/s"
    yield (
        "two controllers on the same cores, 128 connections each",
        f"{statistics.median(two):,.0f} predictions/s, {statistics.median(ratios):.2f} times one controller "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} by round)",
    )


def long_backlog(folder: Path, model: digit_bodies.Model) -> Iterator[Row]:
    """Cost of accepting, polling and draining with a short backlog and with a million jobs."""
    pool = Pool(folder, model.tracking_uri, **LONG_BACKLOG)
    pool.start_redis()
    controller, worker = pool.start_controller(), pool.serving_pid(pool.start_worker())
    os.kill(worker, signal.SIGSTOP)
    yield from _accepting_and_polling(pool, model, "empty pool")
    os.kill(worker, signal.SIGCONT)
    with pool.client() as client:
        _refill(pool, client, worker, FEW_JOBS)
        yield _draining(pool, client, worker, f"{FEW_JOBS:,} jobs waiting")
        added = _refill(pool, client, worker, MANY_JOBS)
        yield (
            f"Redis memory per waiting job, besides its {SAMPLE_BYTES:,} bytes of input",
            f"{added / MANY_JOBS - SAMPLE_BYTES:,.0f} bytes ({added / 2**30:.2f} GiB in all)",
        )
        yield from _accepting_and_polling(pool, model, f"{MANY_JOBS:,} jobs waiting")
        yield from _listing(pool, f"{MANY_JOBS:,} jobs waiting")
        yield _draining(pool, client, worker, f"{MANY_JOBS:,} jobs waiting")
    yield "controller: resident memory after that load", mib(machine.resident_bytes(controller))


def _refill(pool: Pool, client: redis.Redis, worker: int, n_jobs: int) -> int:
    """Empty the queue, suspend the worker, add `n_jobs`; return the growth of Redis's memory in bytes."""
    _wait_for_backlog(client, 0)
    os.kill(worker, signal.SIGSTOP)
    before = int(client.info("memory")["used_memory"])
    asyncio.run(_fill(pool, n_jobs))
    return int(client.info("memory")["used_memory"]) - before


def _accepting_and_polling(pool: Pool, model: digit_bodies.Model, when: str) -> Iterator[Row]:
    """CPU time per accepted job and per poll while the worker is suspended."""
    _wait_for_rewrite(pool)
    used, load = _cpu_of(Generator(_target(pool, model, f"?deadline={FAR_S}"), pool.folder, 64, MEASURE_S))
    per_job = {label: used_s / load.requests * 1e6 for label, used_s in used.items() if label != "worker"}
    yield f"accepting, {when}", f"{_spell(per_job)} µs of CPU per job, {load.per_s:,.0f} jobs/s"
    answer = processes.post(f"http://{LOOPBACK}:{pool.port}/predict?deadline={FAR_S}", _body(model))[1]
    url = f"http://{LOOPBACK}:{pool.port}{json.loads(answer)['result_url']}"
    _wait_for_rewrite(pool)
    before = _cpu_s()
    polls = ["wrk", "--threads", "2", "--connections", "64", "--duration", f"{MEASURE_S}s", url]
    [n_polls] = re.findall(r"(\d+) requests in", subprocess.check_output(polls, text=True))
    after = _cpu_s()
    per_poll = {each: (after[each] - before[each]) / int(n_polls) * 1e6 for each in ("redis", "controller")}
    yield f"polling, {when}", f"{_spell(per_poll)} µs of CPU per poll"


def _listing(pool: Pool, when: str) -> Iterator[Row]:
    """Time of a page of the list of jobs, and CPU time of the controller for it."""
    for query in LISTS:
        times_ms, before = [], _cpu_s()
        for _ in range(TIMES_LISTED):
            start_s = time.monotonic()
            with urlopen(f"http://{LOOPBACK}:{pool.port}/jobs?{query}") as answer:
                answer.read()
            times_ms.append((time.monotonic() - start_s) * 1000)
        cpu_ms = (_cpu_s()["controller"] - before["controller"]) * 1000 / TIMES_LISTED
        figures = f"{statistics.median(times_ms):.1f} ms, {cpu_ms:.1f} ms of CPU (controller)"
        yield f"`GET /jobs?{query}`, {when}", figures


def _draining(pool: Pool, client: redis.Redis, worker: int, when: str) -> Row:
    """CPU time per job when the worker resumes and drains the backlog."""
    _wait_for_rewrite(pool)
    jobs, start_s, before = _backlog_jobs(client), time.monotonic(), _cpu_s()
    os.kill(worker, signal.SIGCONT)
    drained = jobs - _wait_for_backlog(client, jobs - DRAINED_JOBS)
    took_s, after = time.monotonic() - start_s, _cpu_s()
    per_drain = {each: (after[each] - before[each]) / drained * 1e6 for each in ("redis", "worker")}
    return f"draining, {when}", f"{_spell(per_drain)} µs of CPU per job, {drained / took_s:,.0f} jobs/s"


def _wait_for_rewrite(pool: Pool) -> None:
    # Redis rewrites its file whenever its size has doubled, regardless of the load.
    with pool.client() as client:
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)


def _cpu_of(generator: Generator) -> tuple[dict[str, float], Load]:
    """CPU seconds of each process during a load, and the load."""
    before = _cpu_s()
    load = generator.finish()
    after = _cpu_s()
    if load.errors:
        raise SystemExit(f"limits: {load.errors} of {load.requests} posts failed")
    return {label: after[label] - before[label] for label in LABELS}, load


def _cpu_s() -> dict[str, float]:
    found = machine.cpu_by_label(machine.descendants(os.getpid()), MODELYARD.labels)
    return {label: found.get(label, 0.0) for label in LABELS}


def _spell(cpu_us: dict[str, float]) -> str:
    return " + ".join(f"{used:.0f} ({label})" for label, used in cpu_us.items())


def _wait_for_backlog(client: redis.Redis, n_jobs: int) -> int:
    """Wait until at most `n_jobs` jobs are left; return their number."""
    give_up_at_s = time.monotonic() + DRAIN_LIMIT_S
    while (left := _backlog_jobs(client)) > n_jobs:
        if time.monotonic() > give_up_at_s:
            raise SystemExit(
                f"limits: {left:,} jobs are left after {DRAIN_LIMIT_S} s; the worker has stopped"
            )
        time.sleep(0.01)
    return left


def _backlog_jobs(client: redis.Redis) -> int:
    return sum(map(int, client.hvals(keys.BACKLOG)))


async def _fill(pool: Pool, n_jobs: int) -> None:
    """Put jobs into the ledger as a controller does, without HTTP."""
    settings = ControllerSettings(redis_url=pool.redis_url)
    client = connect_async(settings)
    queue = keys.queue_name(settings.model_name, 1)
    secret = await client.get(keys.SECRET)
    assert isinstance(secret, bytes)
    signer = IdSigner(secret)
    made: list[NewBatch] = []
    messages = WakeUpMessages(write_template(create_celery(settings)), queue)
    lot = random.Random(0)
    while n_jobs > 0:
        n_here = min(lot.randint(*JOBS_PER_BATCH), n_jobs)
        n_jobs -= n_here
        now_ms = to_ms(*await client.time())
        batch_id = signer.new_batch_id(now_ms, n_here)
        job = JobEntry(1, now_ms, now_ms + FAR_S * 1000, "highest_val_accuracy", forced=False)
        head = BatchHead(
            queue=queue,
            worker=1,
            reply_to="limits",
            model_name=settings.model_name,
            model_version=1,
            val_accuracy=0.9,
            dtype="float32",
            sample_shape=(1, 28, 28),
            jobs=[job] * n_here,
        )
        data = bytes(n_here * SAMPLE_BYTES)
        made.append(NewBatch(batch_id, head, data, messages.write(batch_id), now_ms))
        if len(made) == AT_ONCE or not n_jobs:
            await accept(client, *made, retention_s=settings.result_retention_s)
            made.clear()
    await client.aclose()


def _target(pool: Pool, model: digit_bodies.Model, query: str, port: int | None = None) -> Target:
    bodies = pool.folder / "bodies.txt"
    digit_bodies.write_bodies(MODELYARD, model, bodies)
    return Target(f"http://{LOOPBACK}:{port or pool.port}/predict{query}", bodies, "")


def _together(pool: Pool, model: digit_bodies.Model, ports: Sequence[int], connections: int) -> float:
    """Predictions per second of all controllers together."""
    generators = []
    for port in ports:
        folder = pool.folder / str(port)
        folder.mkdir(exist_ok=True)
        target = _target(pool, model, "?wait=5", port)
        generators.append(Generator(target, folder, connections // len(ports), MEASURE_S))
    return sum(generator.finish().per_s for generator in generators)


def _body(model: digit_bodies.Model) -> str:
    return digit_bodies.spell(MODELYARD.body(model.samples[0][1]))


def mib(n_bytes: float) -> str:
    """A size in MiB."""
    return f"{n_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
