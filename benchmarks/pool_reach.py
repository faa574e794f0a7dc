"""How a pool follows its registry, its file, its operators and its load: `python -m benchmarks.pool_reach --help`.

Each measurement starts a pool of its own and prints its figures. The load generator runs on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.redis import keys
from app.redis.client import connect_url
from app.settings import Settings
from benchmarks import many_versions, processes
from benchmarks.machine import resident_bytes
from benchmarks.plain_client import PlainClient
from cli.local_pool.programs import http_answers
from faults import fault_registry
from faults.accounting import End, ends
from faults.fault_pool import (
    MODELYARD,
    READY_S,
    Pool,
    PoolPlan,
    Supervised,
    TooLateError,
    open_pool,
    wait_until,
)
from faults.fault_registry import MODEL, tracking_uri
from faults.job_load import POST_TIMEOUT_S, Load, Recipe, Sent, good_jobs, http_client, job
from training.inventory import connect

ALIAS = "champion"
PASS_S = 0.02  # of the model of `burst`
RETIRE_PASS_S = 0.05
RETIRE_JOBS = 1000  # that wait when the version is retired
RETIRE_RATE_PER_S = 250.0
BURST_SENDERS = 128
MANY_TIMES = 10  # its load, in capacities of one replica
QUERY = "deadline=300"
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # of MLflow's server: they cost several processes
FOLLOW_LIMIT_S = 120.0
BACK_LIMIT_S = 600.0
SETTLE_LIMIT_S = 60.0
MIB = 2**20


def main() -> int:
    """Run the measurement that the command line names; return 1 if a request failed or a job was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    alias = commands.add_parser("alias", help="move an alias again and again under load")
    alias.add_argument("--moves", type=int, default=20)
    alias.add_argument("--rate", type=float, default=200.0, help="requests per second")
    away = commands.add_parser("registry-away", help="move an alias while the registry's server is down")
    away.add_argument("--seconds", type=float, default=300.0, help="how long it is down")
    away.add_argument("--rate", type=float, default=50.0, help="requests per second")
    edits = commands.add_parser("edits", help="edit modelyard.toml again and again under load")
    edits.add_argument("--rate", type=float, default=50.0, help="requests per second")
    retire = commands.add_parser("retire", help=f"retire a version for which {RETIRE_JOBS:,} jobs wait")
    retire.add_argument("--reroute", action="store_true", help="move the jobs that wait to another version")
    burst = commands.add_parser(
        "burst", help=f"from no load to {MANY_TIMES} times the capacity of one replica"
    )
    burst.add_argument("--seconds", type=float, default=60.0, help="length of the burst")
    burst.add_argument("--most", type=int, default=12, help="the most replicas")
    burst.add_argument("--deadline", type=float, default=30.0, help="seconds in which each job must end")
    versions = commands.add_parser("versions", help="serve many small versions, and kill processes of them")
    versions.add_argument("--count", type=int, default=50)
    versions.add_argument("--flavor", choices=("sklearn", "pt2"), default="sklearn", help="kind of the model")
    versions.add_argument("--no-fork-server", action="store_true", help="with MODELYARD_FORK_SERVER=false")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            if arguments.command == "versions":
                return many_versions.measure(
                    folder, arguments.count, arguments.flavor, not arguments.no_fork_server
                )
            fault_registry.lay_out(folder)
            failed = asyncio.run(measurement(folder, arguments))
        except TooLateError as error:
            print(f"pool_reach: {error}", file=sys.stderr)
            return 1
    return bool(failed)


async def measurement(folder: Path, arguments: argparse.Namespace) -> int:
    """Run the measurement of a command; returns the failures."""
    match arguments.command:
        case "alias":
            return await move_alias(folder, arguments.moves, arguments.rate)
        case "registry-away":
            return await registry_away(folder, arguments.seconds, arguments.rate)
        case "edits":
            return await edit_file(folder, arguments.rate)
        case "retire":
            return await retire(folder, reroute=arguments.reroute)
        case _:
            return await send_burst(folder, arguments.seconds, arguments.most, arguments.deadline)


async def move_alias(folder: Path, n_moves: int, rate_per_s: float) -> int:
    """Move the alias between two versions, each time after an answer by the version it named; returns failures."""
    temporary = folder / "tmp"
    temporary.mkdir()
    with followed_pool(folder, TMPDIR=str(temporary)) as pool:
        registry, follower = connect(tracking_uri(folder)), pool.workers[0]
        before_bytes = resident_bytes(follower.pid)
        sent, took_s = Sent(), list[float]()
        async with steady_load(pool, sent, rate_per_s):
            for version in itertools.islice(itertools.cycle((2, 1)), n_moves):
                registry.set_registered_model_alias(MODEL, ALIAS, str(version))
                took_s.append(await first_answer_s(pool.urls[0], version))
                say(f"move {len(took_s)} to version {version}", f"first answer after {took_s[-1]:.1f} s")
        failed = await tell_failures(pool.client, sent)
        say("move to the first answer by the new version", spread(took_s))
        grown_bytes = resident_bytes(follower.pid) - before_bytes
        say("follower: memory", f"{before_bytes / MIB:.1f} MiB, grown by {grown_bytes / MIB:.1f} MiB")
        say("follower: restarts", f"{follower.starts - 1}")
    say("temporary folders left", f"{len(list(temporary.iterdir()))}")
    return failed


async def registry_away(folder: Path, away_s: float, rate_per_s: float) -> int:
    """Stop the registry's server, move the alias in its database, start the server; returns failures."""
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    server = Supervised("mlflow", [*command, "--backend-store-uri", tracking_uri(folder)], NO_JOBS, folder)
    server.start()
    try:
        wait_until(lambda: http_answers(f"{url}/health"), "MLflow answers", READY_S)
        with followed_pool(folder, MLFLOW_TRACKING_URI=url) as pool:
            registry, sent = connect(tracking_uri(folder)), Sent()
            async with steady_load(pool, sent, rate_per_s):
                await asyncio.to_thread(server.stop)
                registry.set_registered_model_alias(MODEL, ALIAS, "2")
                await asyncio.sleep(away_s)
                server.start()
                await until(lambda: http_answers(f"{url}/health"), "MLflow answers", READY_S)
                took_s = await first_answer_s(pool.urls[0], 2)
            failed = await tell_failures(pool.client, sent)
            say("return of the registry to the first answer by the new version", f"{took_s:.1f} s")
    finally:
        server.stop()
    return failed


async def edit_file(folder: Path, rate_per_s: float) -> int:
    """Add a better version to modelyard.toml, remove it, and change the replicas, all under load; returns failures."""
    with local_pool(folder, "versions = [2]") as (url, client):
        sent = Sent()
        async with Load(lambda: [url], sent, good_jobs(), rate_per_s, QUERY):
            for what, entry, expected in (
                ("version 1 added", "versions = [1, 2]", {1: 1, 2: 1}),
                ("version 1 removed", "versions = [2]", {2: 1}),
                ("replicas 1 to 4", "versions = [2]\nreplicas = 4", {2: 4}),
                ("replicas 4 to 1", "versions = [2]\nreplicas = 1", {2: 1}),
            ):
                started_s = time.monotonic()
                write_entry(folder, entry)
                await until(lambda: ready_workers(url) == expected, what, FOLLOW_LIMIT_S)  # noqa: B023
                say(f"{what}: followed after", f"{time.monotonic() - started_s:.1f} s")
        return await tell_failures(client, sent)


async def retire(folder: Path, *, reroute: bool) -> int:
    """Retire a version for which many jobs wait; returns the jobs that did not succeed and the refused requests."""
    with open_pool(PoolPlan(replicas=1, controllers=1), folder, short=False) as pool:
        if reroute:
            pool.add_worker(2).start()
            pool.wait_until_well()
        sent = Sent()
        load = Load(lambda: pool.urls, sent, slow_jobs(RETIRE_PASS_S), RETIRE_RATE_PER_S, f"worker=1&{QUERY}")
        async with load:
            await until(lambda: pool.backlog() >= RETIRE_JOBS, "the jobs wait", FOLLOW_LIMIT_S)
        say("jobs that wait", f"{pool.backlog()}")
        async with http_client(base_url=pool.urls[0], timeout=30) as http:
            started_s = time.monotonic()
            answer = await http.post(f"/models/{MODEL}/versions/1/retire", params={"reroute": reroute})
            say("retired", f"{answer.status_code} {answer.text}")
            refused = await http.post(f"/predict?worker=1&{QUERY}", json={"data": job(1).samples})
            say("a new job for the version", f"{refused.status_code} {refused.json().get('code', '')}")
        failed = await tell_failures(pool.client, sent)
        say("all outcomes after", f"{time.monotonic() - started_s:.1f} s")
        await until(
            lambda: any(not status for _, status in pool.workers[0].exits), "its worker ends", FOLLOW_LIMIT_S
        )
        say("its worker has ended after", f"{time.monotonic() - started_s:.1f} s")
    return failed


async def send_burst(folder: Path, burst_s: float, most: int, deadline_s: float) -> int:
    """Send many times the capacity of one replica to `modelyard up`; returns the requests that failed."""
    with local_pool(folder, f"versions = [1]\nreplicas = [1, {most}]") as (url, client):
        rate_per_s = MANY_TIMES / PASS_S
        recipes = itertools.islice(slow_jobs(PASS_S), int(burst_s * rate_per_s))
        sent, started_s, started_ms = Sent(), time.monotonic(), time.time() * 1000
        replicas = [(0.0, 1)]
        watching = asyncio.create_task(watch_replicas(url, started_s, replicas))
        query = f"deadline={deadline_s:g}"
        load = Load(
            lambda: [url],
            sent,
            recipes,
            rate_per_s,
            query,
            open_client=lambda: PlainClient(POST_TIMEOUT_S),
            senders=BURST_SENDERS,
        )
        async with load:
            await load.finished()
        over_s = time.monotonic() - started_s
        n_posts = len(sent.accepted) + sent.refused.total() + sent.broken
        say(
            "burst",
            f"{n_posts / over_s:.0f} requests per second for {over_s:.0f} s; asked for {rate_per_s:.0f}",
        )
        say("of these accepted", f"{len(sent.accepted) / over_s:.0f} per second")
        await until_settled(client, deadline_s + SETTLE_LIMIT_S)
        tell_burst(ends(client, keys.queue_name(MODEL, 1), started_ms), sent, started_ms, replicas)
        await until(lambda: replicas[-1][1] == 1, "one replica is left", BACK_LIMIT_S)
        watching.cancel()
        say("replicas", ", ".join(f"{count} at {at_s:.0f} s" for at_s, count in replicas))
        say("end of the burst to one replica", f"{replicas[-1][0] - over_s:.0f} s")
    return sent.refused.total() + sent.broken


def tell_burst(
    done: Sequence[End], sent: Sent, started_ms: float, replicas: Sequence[tuple[float, int]]
) -> None:
    """Print the outcomes, of all jobs and of those that arrived once the last replica was there."""
    most = max(count for _, count in replicas)
    scaled_s = next(at_s for at_s, count in replicas if count == most)
    say("scaled", f"{most} replicas after {scaled_s:.0f} s")
    scaled = [end for end in done if end.received_at_ms >= started_ms + scaled_s * 1000]
    for what, some in (("all jobs", done), ("jobs after that", scaled)):
        statuses = Counter(end.status for end in some)
        took_ms = sorted(end.took_ms for end in some) or [0.0]
        p99_s = took_ms[int(0.99 * (len(took_ms) - 1))] / 1000
        say(what, f"{dict(statuses)}, p99 {p99_s:.2f} s")
    say("refused", f"{dict(sent.refused)}, broken connections {sent.broken}")


@contextmanager
def followed_pool(folder: Path, **variables: str) -> Iterator[Pool]:
    """A pool of one controller and one worker that follows the alias, which names version 1."""
    connect(tracking_uri(folder)).set_registered_model_alias(MODEL, ALIAS, "1")
    with open_pool(PoolPlan(replicas=0, controllers=0), folder, short=False) as pool:
        pool.add_controller().start()
        pool.add_worker(1, MODEL_VERSION=ALIAS, WORKER="", **variables).start()
        pool.wait_until_well()
        yield pool


@contextmanager
def local_pool(folder: Path, entry: str) -> Iterator[tuple[str, Any]]:
    """`modelyard up` with a file of one entry: its controller's URL, and a client of its Redis."""
    write_entry(folder, entry)
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {
        "MLFLOW_TRACKING_URI": tracking_uri(folder),
        "MODELYARD_STATE_DIR": str(folder),
        "MODELYARD_PORT": str(port),
    }
    up = Supervised("up", [*MODELYARD, "up", "--no-views"], variables, folder)
    up.start()
    try:
        started_s = time.monotonic()
        wait_until(lambda: http_answers(f"{url}/readyz"), "the pool is ready", READY_S)
        say("start of the pool, for comparison", f"{time.monotonic() - started_s:.1f} s")
        with connect_url(f"unix://{Settings(state_dir=folder, redis_url='').redis_socket}") as client:
            yield url, client
    finally:
        up.stop()


def write_entry(folder: Path, entry: str) -> None:
    """Write a file with one `[[serve]]` entry, all at once."""
    written = folder / "modelyard.new"
    written.write_text(f'[[serve]]\nmodel = "{MODEL}"\nallow_pickle_models = true\n{entry}\n')
    written.replace(folder / "modelyard.toml")


def ready_workers(url: str) -> dict[int, int]:
    """The number of ready workers of each version that has any."""
    rows = httpx.get(f"{url}/workers", timeout=30).json()["workers"]
    counts = {
        row["model_version"]: [each["state"] for each in row["replicas"]].count("ready") for row in rows
    }
    return {version: count for version, count in counts.items() if count}


def steady_load(pool: Pool, sent: Sent, rate_per_s: float) -> Load:
    """Jobs that take no time."""
    return Load(lambda: pool.urls, sent, good_jobs(), rate_per_s, QUERY)


def slow_jobs(seconds: float) -> Iterator[Recipe]:
    """Jobs that take so long each, however many are in a batch."""
    return (job(number, sample_seconds=seconds) for number in itertools.count())


async def first_answer_s(url: str, version: int) -> float:
    """Seconds until a version answers a request that does not name one."""
    started_s = time.monotonic()
    async with http_client(timeout=FOLLOW_LIMIT_S) as http:
        while time.monotonic() < started_s + FOLLOW_LIMIT_S:
            answer = await http.post(f"{url}/predict?{QUERY}&wait=60", json={"data": job(1).samples})
            if answer.status_code == 200 and answer.json()["model_version"] == version:
                return time.monotonic() - started_s
            await asyncio.sleep(0.05)
    raise TooLateError(f"version {version} has not answered within {FOLLOW_LIMIT_S:g} s")


async def tell_failures(client: Any, sent: Sent) -> int:
    """Wait for all outcomes; print and return the number of requests that failed or whose job did not succeed."""
    await until_settled(client, SETTLE_LIMIT_S)
    done = [end for version in (1, 2) for end in ends(client, keys.queue_name(MODEL, version), 0)]
    n_otherwise = sum(end.status != "succeeded" for end in done)
    failed = n_otherwise + sent.refused.total() + sent.broken
    say("requests", f"{len(sent.accepted) + sent.refused.total() + sent.broken}")
    say(
        "failed", f"{failed}: refused {dict(sent.refused)}, broken {sent.broken}, not succeeded {n_otherwise}"
    )
    return failed


async def until_settled(client: Any, limit_s: float) -> None:
    """Wait until every accepted job has its outcome."""
    await until(lambda: not any(map(int, client.hvals(keys.BACKLOG))), "every job has its outcome", limit_s)


async def until(condition: Callable[[], object], what: str, limit_s: float) -> None:
    """Wait for a condition while the load goes on."""
    await asyncio.to_thread(wait_until, condition, what, limit_s)


async def watch_replicas(url: str, started_s: float, replicas: list[tuple[float, int]]) -> None:
    """Append each change of the number of ready workers, and when it was seen."""
    async with http_client(base_url=url, timeout=30) as http:
        while True:
            try:
                count = (await http.get(f"/scale/{MODEL}/1")).json()["live_replicas"]
                if count != replicas[-1][1]:
                    replicas.append((time.monotonic() - started_s, count))
            except (httpx.HTTPError, KeyError, ValueError):
                pass  # the next look tells
            await asyncio.sleep(0.5)


def spread(seconds: Sequence[float]) -> str:
    """Median and longest."""
    return f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s"


def say(what: str, figure: str) -> None:
    """Print a figure."""
    print(f"{what:<62} {figure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
