"""Predicts a file of rows with `modelyard batch`, and compares the time with the worker's saturation time.

`python -m benchmarks.batch_file --rows 1000000` starts a pool of its own: one worker of the tabular workload's model
(LightGBM, 30 columns). The saturation time is what the worker takes for as many rows if they wait in its queue: the
controller accepts rows while the worker is suspended, and the worker then works them off.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from app.redis import keys
from benchmarks import envs, machine, processes
from benchmarks.bench_pool import Pool
from benchmarks.systems import LOOPBACK, ONE_THREAD, PEERS, SYSTEMS
from benchmarks.workloads import TABLE, TABULAR

# A suspended worker that misses fewer than three heartbeats does not count as dead.
SUSPENDABLE = {"MODELYARD_HEARTBEAT_S": "20", "MODEL_NAME": "Bench", **ONE_THREAD}
# So that all rows of a round wait in Redis.
ACCEPTS_AHEAD = {"MODELYARD_BATCHES_AHEAD": "64"}
# As a cheap model deserves; `modelyard batch` sends as many rows in a request.
TAKES_MANY_ROWS = {"MODELYARD_MAX_SAMPLES": "8192"}
WAITING_REQUESTS, ROWS_IN_A_REQUEST = 50, 1000
ROUNDS = 5
ROW_GROUP_ROWS = 100_000
TYPES = {
    "measure": pa.float64(),
    "price": pa.float32(),
    "count": pa.int64(),
    "category": pa.int64(),
    "flag": pa.bool_(),
}
LIMIT_S = 3600
POLL_S = 0.005


@dataclass(frozen=True)
class Run:
    """One run of `modelyard batch`.

    Attributes:
        wall_s: From its start to its end.
        cpu_s: CPU seconds by process.
        peak_bytes: Largest resident memory by process.
    """

    wall_s: float
    cpu_s: dict[str, float]
    peak_bytes: dict[str, int]


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the file (default: 100000)")
    parser.add_argument(
        "--kind", choices=("parquet", "csv"), default="parquet", help="kind of input and output"
    )
    parser.add_argument("--runs", type=int, default=1, help="runs of the command (default: 1)")
    asked = parser.parse_args()
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    made = _make_model()
    rows = _table(json.loads((made / "samples.json").read_text())["100 rows"])
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as folder:
        try:
            _measure(Path(folder), made, rows, asked)
        finally:
            processes.stop_all()
    return 0


def _measure(folder: Path, made: Path, rows: pa.Table, asked: argparse.Namespace) -> None:
    source = folder / f"rows.{asked.kind}"
    _write(source, rows, asked.rows)
    print(f"{machine.describe()}; {asked.rows:,} rows in {source.stat().st_size >> 20} MiB of {asked.kind}")
    pool = Pool(folder, f"sqlite:///{made}/mlruns.db", **SUSPENDABLE)
    pool.start_redis()
    worker = pool.serving_pid(pool.start_worker())
    controller = pool.start_controller(variables=ACCEPTS_AHEAD)
    rounds = [_drain(pool, worker, rows.slice(0, ROWS_IN_A_REQUEST)) for _ in range(ROUNDS)]
    pool.stop(controller)
    wall_us, cpu_us = (statistics.median(each) * 1e6 for each in zip(*rounds, strict=True))
    print(f"saturated worker: {wall_us:.1f} µs per row, {cpu_us:.1f} µs of CPU; {1e6 / wall_us:,.0f} rows/s")
    pool.start_controller(variables=TAKES_MANY_ROWS)
    for _ in range(asked.runs):
        run = _run(pool, source)
        ratio = run.wall_s / (wall_us * asked.rows / 1e6)
        print(
            f"modelyard batch: {run.wall_s:.1f} s, {asked.rows / run.wall_s:,.0f} rows/s, {ratio:.2f} x saturation"
        )
        per_row = {name: used_s / asked.rows * 1e6 for name, used_s in run.cpu_s.items()}
        busy = sum(per_row.values()) / cpu_us / (os.cpu_count() or 1)
        print("CPU µs per row:", ", ".join(f"{name} {each:.1f}" for name, each in per_row.items()))
        print(
            f"all CPU on {os.cpu_count()} cores: {busy:.2f} x the saturated worker's, the least that is possible"
        )
        peaks = ", ".join(f"{name} {peak >> 20} MiB" for name, peak in run.peak_bytes.items())
        print("peak memory:", peaks, flush=True)


def _make_model() -> Path:
    """The registry of the tabular model; made on first use, in this environment."""
    folder = envs.ENVIRONMENTS / "workloads" / "batch_file"
    if not (folder / "samples.json").exists():
        command = [sys.executable, str(PEERS / "make_model.py"), TABULAR.name, str(folder)]
        subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=True, timeout=LIMIT_S)
    return folder


def _table(samples: list[Any]) -> pa.Table:
    rows = [row for _, group in samples for row in group]
    columns = zip(*rows, strict=True)
    arrays = [pa.array(each, TYPES[name.split("_")[0]]) for name, each in zip(TABLE, columns, strict=True)]
    return pa.table(dict(zip(TABLE, arrays, strict=True)))


def _write(path: Path, rows: pa.Table, n_rows: int) -> None:
    make = parquet.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
    group = pa.concat_tables([rows] * (ROW_GROUP_ROWS // rows.num_rows))
    with make(path, rows.schema) as writer:
        for start in range(0, n_rows, group.num_rows):
            writer.write_table(group.slice(0, n_rows - start))


def _drain(pool: Pool, worker: int, rows: pa.Table) -> tuple[float, float]:
    """Seconds and CPU seconds of a saturated worker per row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    body, url = sink.getvalue().to_pybytes(), f"http://{LOOPBACK}:{pool.port}/predict"
    os.kill(worker, signal.SIGSTOP)
    for _ in range(WAITING_REQUESTS):
        status, answer = processes.post(url, body, "application/vnd.apache.arrow.stream")
        if status != 202:
            raise SystemExit(f"batch_file: {answer}")
    before_s, started_s = machine.cpu_of(worker), time.monotonic()
    os.kill(worker, signal.SIGCONT)
    with pool.client() as client:
        while sum(map(int, client.hvals(keys.BACKLOG))):
            if time.monotonic() - started_s > LIMIT_S:
                raise SystemExit("batch_file: the worker has stopped")
            time.sleep(POLL_S)
    n_rows = WAITING_REQUESTS * rows.num_rows
    return (time.monotonic() - started_s) / n_rows, (machine.cpu_of(worker) - before_s) / n_rows


def _run(pool: Pool, source: Path) -> Run:
    command = [sys.executable, "-m", "modelyard", "batch", str(source), "--restart", "--json"]
    output = source.with_name(f"out{source.suffix}")
    environment = {**os.environ, "MODELYARD_URL": f"http://{LOOPBACK}:{pool.port}"}
    before, started_s = _cpu_s(), time.monotonic()
    client = subprocess.Popen([*command, "--output", str(output)], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(client.pid, 0)
    wall_s, after = time.monotonic() - started_s, _cpu_s()
    if status:
        raise SystemExit("batch_file: modelyard batch failed")
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    peaks = {"client": usage.ru_maxrss * 1024}
    for pid in machine.descendants(os.getpid()):
        [label] = machine.cpu_by_label([pid], SYSTEMS[0].labels)
        peaks[label] = max(peaks.get(label, 0), machine.peak_bytes(pid))
    return Run(wall_s, {"client": usage.ru_utime + usage.ru_stime, **used}, peaks)


def _cpu_s() -> dict[str, float]:
    return machine.cpu_by_label(machine.descendants(os.getpid()), SYSTEMS[0].labels)


if __name__ == "__main__":
    sys.exit(main())
