"""`modelyard demo`: trains two versions if there are none, serves them, sends real digits and shows the answers."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.pool_file import Serve
from app.registry_database import sqlite_path
from app.server_errors import ServiceError
from app.settings import PREFIX, PoolSettings, Settings, load
from modelyard.commands.console_output import examples

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from modelyard import Client, Job
    from modelyard.records import Record
    from training.registry_reader import RegistryReader

VERSIONS = 2
RECORDS = Path("worker_benchmark_records.json")
DATABASE = "mlruns.db"
# Settings that would direct the demo to a registry, a Redis or a model of the user.
OWN_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
    *(
        "MLFLOW_RUN_ID",
        "REDIS_URL",
        "REDIS_PASSWORD_FILE",
        "MODEL_NAME",
        "MODEL_VERSION",
        "WORKER",
        "WORKER_NUMBER",
    ),
)
HEADINGS = ("digit", "predicted", "", "version", "val_accuracy", "worker", "forced", "took")


@click.command("demo", epilog=examples("modelyard demo", "modelyard demo --once"))
@click.option("--once", is_flag=True, help="Exit after the predictions instead of serving until Ctrl-C.")
@click.option(
    "--here",
    is_flag=True,
    help="Use the registry, Redis and model of the environment instead of the demo's own.",
)
def command(once: bool, here: bool) -> None:
    """Train two versions on handwritten digits, serve them, and send them digits that they never saw.

    The demo has a registry and a Redis of its own, in the folder demo of MODELYARD_STATE_DIR. Versions
    that are registered there already are served as they are.
    """
    from rich.console import Console

    from cli.local_pool.desired_state import difference
    from cli.local_pool.local_pool import PoolPlan, claimed, open_pool, until_interrupted
    from cli.local_pool.planning import first_state
    from cli.local_pool.preflight import check
    from cli.local_pool.registry_watch import RegistryWatch
    from cli.local_pool.served_entries import ServedEntries
    from training.registry_reader import RegistryReader

    started_at = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    if not here:
        _move_in(console)
    settings = load(PoolSettings)
    uri = settings.mlflow_tracking_uri
    with until_interrupted(), claimed(settings, console), RegistryReader(uri) as reader:
        check(settings, PoolPlan([]).services(settings))  # before minutes are spent on training
        source = ServedEntries(settings, [trained_versions(settings, reader)])
        question, reading, desired = first_state(settings, source, reader, 1)
        workers = [worker for worker, _ in difference(desired.targets, {}, []).start]
        with open_pool(settings, PoolPlan(workers), console) as pool:
            pool.start_core()
            records = _show_predictions(pool.url, console)
            console.print(f"predicted {time.monotonic() - started_at:.1f} s after the start")
            _write(records, console)
            pool.start_views()
            pool.print_urls()
            if not once:
                if not here:
                    _tell_how_to_join(settings, console)
                console.print("Ctrl-C stops everything that was started, and nothing else")
                pool.follow(source, RegistryWatch(uri, question, reading, reader), 1)


def _move_in(console: Console) -> None:
    """Make this process and its children use the registry and Redis of the demo, whatever the environment names."""
    named = [name for name in os.environ if name.upper().removeprefix(PREFIX) in OWN_VARIABLES]
    ignored = [name for name in named if os.environ.pop(name)]
    folder = load(Settings).state_dir / "demo"
    os.environ |= {
        "MODELYARD_STATE_DIR": str(folder),
        "MODELYARD_FILE": os.devnull,  # a modelyard.toml that lies here is about other models
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / DATABASE}",
    }
    if ignored:
        verb = "is" if len(ignored) == 1 else "are"
        text = f"{', '.join(ignored)} {verb} not used: the demo has its own registry and Redis in {folder}; "
        console.print(f"{text}--here uses yours", markup=False)


def _tell_how_to_join(settings: PoolSettings, console: Console) -> None:
    variables = {
        "MODELYARD_STATE_DIR": str(settings.state_dir),
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
    }
    joined = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    text = f"other commands join it after: export {joined}"
    console.print(text, markup=False)


def trained_versions(settings: PoolSettings, reader: RegistryReader) -> Serve:
    """The two newest versions of the registry; trains them first if there are fewer.

    Raises:
        ServiceError: The training failed; its own output says why.
    """
    from cli.local_pool.programs import MODELYARD

    newest = _newest_versions(settings, reader)
    if len(newest) < VERSIONS:
        # In a separate process, so that this one does not keep torch and MLflow in memory while the pool runs.
        _train([*MODELYARD, "train", "--arch", "mlp", "--arch", "cnn"], settings)
        newest = _newest_versions(settings, reader)
    return Serve(model=settings.model_name, versions=tuple(newest))


def _newest_versions(settings: PoolSettings, reader: RegistryReader) -> list[int]:
    from training.registry_reader import ModelReading, Question

    name = settings.model_name
    model = reader.read(Question((name,))).models.get(name, ModelReading())
    return sorted(model.versions)[-VERSIONS:]


def _train(command: list[str], settings: PoolSettings) -> None:
    path = sqlite_path(settings.mlflow_tracking_uri)
    if path is None:
        train = subprocess.run(command, check=False)  # noqa: S603
    else:  # MLflow keeps the artifacts of a new database in the working folder
        path.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{path.name}"}
        train = subprocess.run(command, cwd=path.parent, env=environment, check=False)  # noqa: S603
    if train.returncode:
        raise ServiceError(f"the training failed with status {train.returncode}; its output is above")


def _show_predictions(url: str, console: Console) -> list[Record]:
    from rich.table import Table

    from modelyard import Client

    table = Table(*HEADINGS, box=None)
    records = []
    with Client(url) as client:
        for job, record in _predictions(client):
            _add_row(table, job, record)
            records.append(record)
    console.print(table)
    right = sum(record.predicted == record.true_label for record in records)
    console.print(f"{right} of {len(records)} right")
    return records


def _predictions(client: Client) -> Iterator[tuple[Job, Record]]:
    """Digits that are not in the training data: half are routed by the policy, the others are forced to each worker."""
    from modelyard.benchmark import record_of
    from modelyard.samples import one_of_each_digit

    samples = one_of_each_digit()
    numbers = [info.worker for info in client.workers() if info.live_workers]
    half = len(samples) // 2
    for index in range(len(samples)):
        worker = None if index < half else numbers[(index - half) % len(numbers)]
        sent_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        before_s = time.perf_counter()
        job = client.predict(samples.images[index : index + 1], worker=worker)
        latency_ms = (time.perf_counter() - before_s) * 1000
        yield job, record_of(job, None, sent_at, round(latency_ms, 3), samples.label(index))


def _add_row(table: Table, job: Job, record: Record) -> None:
    accuracy = "unknown" if job.val_accuracy is None else f"{job.val_accuracy:.4f}"
    table.add_row(
        str(record.true_label),
        str(record.predicted),
        "[green]right[/]" if record.predicted == record.true_label else "[yellow]wrong[/]",
        str(job.model_version),
        accuracy,
        str(job.worker),
        "yes" if job.forced else "no",
        f"{record.client_latency_ms:.1f} ms",
    )


def _write(records: Sequence[Record], console: Console) -> None:
    from modelyard.records import append_records

    kept_aside = append_records(RECORDS, records)
    if kept_aside:
        console.print(f"{RECORDS} was unreadable and is now {kept_aside}")
    console.print(f"appended {len(records)} records to {RECORDS}")
