"""Many small versions on one machine: `python -m benchmarks.pool_reach versions`.

One small model of scikit-learn or PyTorch is registered many times, and `modelyard up` serves one of its versions, then
all. Printed are memory and start of each further version. Then a serving process, a worker and the fork server are
killed under load.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings
from app.worker_record import WorkerRecord
from benchmarks.machine import TICKS_PER_S
from benchmarks.processes import free_port
from cli.local_pool import leftovers
from cli.local_pool.present_state import local_workers
from cli.local_pool.programs import http_answers
from faults.fault_pool import MODELYARD, Supervised, wait_until
from faults.fault_registry import tracking_uri
from faults.job_load import http_client

MODEL = "Small"
N_FEATURES = 8
MIB = 2**20
START_LIMIT_S = 1800.0
AGAIN_LIMIT_S = 120.0
N_REQUESTS = 100  # around each kill


@dataclass(frozen=True)
class Cost:
    """What the workers of a pool, and its fork server, have cost once all are ready."""

    ready_s: float
    memory_bytes: int
    processor_s: float


class ManyVersions:
    """A pool of `modelyard up` with the first versions of the model."""

    def __init__(self, folder: Path, count: int, forks: bool) -> None:
        self.folder, self.count = folder, count
        self.url = f"http://127.0.0.1:{free_port()}"
        versions = ", ".join(map(str, range(1, count + 1)))
        (folder / "modelyard.toml").write_text(f'[[serve]]\nmodel = "{MODEL}"\nversions = [{versions}]\n')
        variables = {
            "MLFLOW_TRACKING_URI": tracking_uri(folder),
            "MODELYARD_STATE_DIR": str(folder),
            "MODELYARD_PORT": self.url.rpartition(":")[2],
            "MODELYARD_FORK_SERVER": str(forks).lower(),
        }
        self.up = Supervised("up", [*MODELYARD, "up", "--no-views"], variables, folder)
        self.redis_url = f"unix://{Settings(state_dir=folder, redis_url='').redis_socket}"

    def ready(self) -> dict[int, WorkerRecord]:
        """Records of ready workers whose processes are alive, by version."""
        return {
            record.model_version: record
            for record in local_workers(self.redis_url).values()
            if record.state == "ready" and Path(f"/proc/{record.pid}").exists()
        }

    def cost(self, ready_s: float) -> Cost:
        """The cost so far."""
        memory_bytes, ticks = 0, 0
        for process in leftovers.processes(self.folder):
            if not process.name.startswith(("worker-", "fork-server")):
                continue
            with suppress(OSError):  # a look-up that has just ended
                memory_bytes += leftovers.proportional_bytes(process.pid)
                # utime, stime, and those of children that have ended, see proc(5)
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return Cost(ready_s, memory_bytes, ticks / TICKS_PER_S)


@contextmanager
def started(folder: Path, count: int, forks: bool) -> Iterator[tuple[ManyVersions, Cost]]:
    """A pool all of whose workers are ready, and its cost."""
    pool, started_s = ManyVersions(folder, count, forks), time.monotonic()
    pool.up.start()
    try:
        wait_until(lambda: len(pool.ready()) == count, f"{count} versions are ready", START_LIMIT_S)
        ready_s = time.monotonic() - started_s
        wait_until(lambda: http_answers(f"{pool.url}/readyz"), "the pool is ready", AGAIN_LIMIT_S)
        yield pool, pool.cost(ready_s)
    finally:
        pool.up.stop()


def measure(folder: Path, count: int, flavor: str, forks: bool) -> int:
    """Print all figures; return 1 if a request failed."""
    command = [sys.executable, "-m", "benchmarks.many_versions", str(folder), str(count), flavor]
    subprocess.run(command, check=True, capture_output=True)
    with started(folder, 1, forks) as (_, one):
        tell("1 version", one)
    with started(folder, count, forks) as (pool, many):
        tell(f"{count} versions", many)
        more = count - 1
        say("a further version: memory", f"{(many.memory_bytes - one.memory_bytes) / more / MIB:.1f} MiB")
        say("a further version: processor", f"{(many.processor_s - one.processor_s) / more:.2f} s")
        failed = asyncio.run(ask_each(pool)) + sum(asyncio.run(kill_each(pool)))
    return bool(failed)


async def ask_each(pool: ManyVersions) -> int:
    """Ask every version; returns how many did not answer."""
    async with http_client(base_url=pool.url, timeout=AGAIN_LIMIT_S) as http:
        answers = [await ask(http, version) for version in range(1, pool.count + 1)]
    say("versions that answer a prediction", f"{sum(answers)} of {pool.count}")
    return pool.count - sum(answers)


async def kill_each(pool: ManyVersions) -> list[int]:
    """Kill one process of each kind under load; returns the failed requests of each."""
    [server] = [each.pid for each in leftovers.processes(pool.folder) if each.name == "fork-server"] or [0]
    victims = {"serving process": pool.ready()[1].pid, "worker": pool.ready()[1].main_pid}
    if server:
        victims["fork server"] = server
    return [await kill(pool, name, pid) for name, pid in victims.items()]


async def kill(pool: ManyVersions, name: str, pid: int) -> int:
    """Kill a process amid requests to version 1; returns those that failed."""
    before = pool.ready()[1].pid
    async with http_client(base_url=pool.url, timeout=AGAIN_LIMIT_S) as http:
        asked = [asyncio.create_task(ask(http, 1)) for _ in range(N_REQUESTS)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        os.kill(pid, signal.SIGKILL)
        failed = N_REQUESTS - sum(await asyncio.gather(*asked))
    await asyncio.to_thread(
        wait_until,
        lambda: len(pool.ready()) == pool.count,
        f"all are ready after the {name}'s death",
        AGAIN_LIMIT_S,
    )
    answered = sum([await ask_once(pool, version) for version in range(1, pool.count + 1)])
    other = "another process" if pool.ready()[1].pid != before else "the same process"
    say(
        f"{name} killed",
        f"{failed} of {N_REQUESTS} requests failed; then {answered} versions answer, 1 by {other}",
    )
    return failed + pool.count - answered


async def ask_once(pool: ManyVersions, version: int) -> bool:
    """Ask a version with a client of its own."""
    async with http_client(base_url=pool.url, timeout=AGAIN_LIMIT_S) as http:
        return await ask(http, version)


async def ask(http: httpx.AsyncClient, version: int) -> bool:
    """Whether a version answers a prediction."""
    query = {"model": MODEL, "version": str(version), "deadline": "100", "wait": "60"}
    answer = await http.post("/predict", params=query, json={"data": [[0.5] * N_FEATURES]})
    return answer.status_code == 200 and answer.json()["model_version"] == version


def tell(what: str, cost: Cost) -> None:
    """Print a cost."""
    say(
        what,
        f"{cost.memory_bytes / MIB:.0f} MiB, {cost.processor_s:.1f} CPU s, ready after {cost.ready_s:.0f} s",
    )


def say(what: str, figure: str) -> None:
    """Print a figure."""
    print(f"{what:<40} {figure}", flush=True)


def register(folder: Path, count: int, flavor: str) -> None:
    """Log a model, and register it many times."""
    import mlflow
    import numpy as np

    mlflow.set_tracking_uri(tracking_uri(folder))
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("small", artifact_location=(folder / "artifacts").as_uri())
    )
    rows = np.random.default_rng(0).normal(size=(200, N_FEATURES))
    log = _log_sklearn if flavor == "sklearn" else _log_pt2
    with mlflow.start_run() as run:
        mlflow.log_metric("val_accuracy", 0.9)
        info = log(rows)
    client = mlflow.MlflowClient()
    client.create_registered_model(MODEL)
    for _ in range(count):
        client.create_model_version(MODEL, f"models:/{info.model_id}", run.info.run_id)


def _log_sklearn(rows: Any) -> Any:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(rows, rows[:, 0] > 0)
    signature = infer_signature(rows, model.predict(rows))
    return mlflow.sklearn.log_model(
        model, name="model", signature=signature, pip_requirements=["scikit-learn"]
    )


def _log_pt2(rows: Any) -> Any:
    import mlflow
    import torch
    from mlflow.models import infer_signature

    given = rows.astype("float32")
    model = torch.nn.Sequential(torch.nn.Linear(N_FEATURES, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    return mlflow.pytorch.log_model(
        model,
        name="model",
        signature=infer_signature(given, model(torch.from_numpy(given)).detach().numpy()),
        input_example=given[:2],
        serialization_format="pt2",
        pip_requirements=["torch"],
    )


if __name__ == "__main__":
    register(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
