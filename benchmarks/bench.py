"""Benchmark Modelyard against other servers: `make bench`. Each runs alone; rounds are interleaved."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import accepted, envs, machine, plots, processes, report, wrk_load
from benchmarks.processes import StartError
from benchmarks.report import ACCEPTED, ALONE, BARE, SYNC, Round
from benchmarks.systems import LOOPBACK, ONE_THREAD, PEERS, SYSTEMS, Place, System
from benchmarks.workloads import LARGE, PERCEPTRON, REAL, WORKLOADS, Made, Request, Workload
from benchmarks.wrk_load import Generator, Load, LoadError, Target

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"
ACCEPT_CONNECTIONS = 64
MAX_SAMPLES = 1024  # of one request to Modelyard


@dataclass(frozen=True)
class Plan:
    """The extent of a run.

    Attributes:
        systems: Names of the systems; empty for all of each workload.
        warm_s: Seconds of the same load before each measurement.
        measure_s: Seconds of each measurement; 0 for those of the workload.
        n_jobs: Number of jobs of the asynchronous measurement.
        publish: Whether the results go into the README.
    """

    workloads: tuple[Workload, ...]
    systems: tuple[str, ...]
    n_rounds: int
    warm_s: int
    measure_s: int
    n_jobs: int
    publish: bool


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = f"one of {', '.join(WORKLOADS)}, or real for the last four"
    parser.add_argument("--workload", default=PERCEPTRON.name, help=names)
    parser.add_argument("--only", default="", help="systems to measure, separated by commas; default: all")
    parser.add_argument("--quick", action="store_true", help="measure two short rounds")
    parser.add_argument("--rounds", type=int, default=0, help="number of rounds; default: 5, with --quick 2")
    arguments = parser.parse_args()
    plan = make_plan(
        arguments.only, quick=arguments.quick, n_rounds=arguments.rounds, workload=arguments.workload
    )
    try:
        generator = wrk_load.version()
    except LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    n_measured = 0
    for workload in plan.workloads:
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            bench = Bench(plan, workload, Path(folder), generator)
            try:
                bench.run()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 1
            finally:
                processes.stop_all()
            n_measured += len(bench.rounds)
    return 0 if n_measured else 1


def make_plan(only: str, *, quick: bool, n_rounds: int, workload: str = PERCEPTRON.name) -> Plan:
    """The plan that the command line asks for.

    Raises:
        SystemExit: It names an unknown system or workload.
    """
    names = tuple(only.split(",")) if only else ()
    known = [*[system.name for system in SYSTEMS], BARE]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"bench: unknown system {', '.join(unknown)}; known: {', '.join(known)}")
    if workload not in (*WORKLOADS, "real"):
        raise SystemExit(f"bench: unknown workload {workload}; known: {', '.join(WORKLOADS)}, real")
    chosen = REAL if workload == "real" else (WORKLOADS[workload],)
    if quick:
        return Plan(chosen, names, n_rounds or 2, warm_s=1, measure_s=2, n_jobs=2_000, publish=False)
    return Plan(chosen, names, n_rounds or 5, warm_s=1, measure_s=0, n_jobs=10_000, publish=not only)


def systems_of(workload: Workload, names: Sequence[str]) -> list[System]:
    """The systems to measure with a workload.

    Args:
        names: The ones asked for; empty for all.
    """
    own = workload.systems or [each.name for each in SYSTEMS if each.name != "modelyard-2"]
    return [each for each in SYSTEMS if each.name in own and (not names or each.name in names)]


class Bench:
    """One run of the benchmark with one workload.

    Args:
        folder: Scratch folder.
        generator: Name and version of the load generator.
    """

    def __init__(self, plan: Plan, workload: Workload, folder: Path, generator: str) -> None:
        self.rounds: list[Round] = []
        self._plan = plan
        self._workload = workload
        self._systems = systems_of(workload, plan.systems)
        self._measure_s = plan.measure_s or workload.measure_s
        self._folder = folder
        self._generator = generator
        self._started_at = datetime.now(UTC)
        self._programs: dict[str, Path] = {}
        self._about: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    def run(self) -> None:
        """Install, measure, report."""
        for system in self._systems:
            self._install(system)
        made = self._workload.make()
        has_bare = self._workload.bare_batches and (not self._plan.systems or BARE in self._plan.systems)
        for number in range(1, self._plan.n_rounds + 1):
            if has_bare:
                self._measure_bare(number, made)
            for system in self._systems:
                if system.name not in self._failures:
                    self._measure(number, system, made)
            self._report()

    def _install(self, system: System) -> None:
        try:
            self._programs[system.name] = envs.bin_folder(system)
            versions = envs.versions(system, self._programs[system.name])
        except (envs.InstallError, OSError) as error:
            self._fail(system, f"cannot be installed: {error}")
        else:
            named = ", ".join(f"{name} {version}" for name, version in versions.items())
            self._about[system.name] = f"{named}; {system.about}"

    def _measure_bare(self, number: int, made: Made) -> None:
        """Call the model in a loop: at batch size 1, and at the size with the best throughput."""
        way, connections = list(self._workload.ways.items())[-1]
        python = str(envs.ENVIRONMENTS / "mlflow" / "bin" / "python")
        sizes = map(str, self._workload.bare_batches)
        command = [python, str(PEERS / "bare.py"), way, str(self._measure_s / 2), *sizes]
        variables = {"BENCH_WORKLOAD": self._workload.name, "BENCH_MODEL": str(made.file), **ONE_THREAD}
        before = machine.times()
        answer = subprocess.run(
            command, env={**os.environ, **variables}, stdout=subprocess.PIPE, check=True, timeout=120
        )
        took_s = {int(size): calls for size, calls in json.loads(answer.stdout.splitlines()[-1]).items()}
        per_s = {size: size / median(calls) for size, calls in took_s.items()}
        best = max(per_s, key=lambda size: per_s[size])
        sizes_tried = ", ".join(map(str, per_s))
        self._about[BARE] = (
            f"a loop in one thread; many connections: in batches of the best size of {sizes_tried}"
        )
        noise = machine.noise(before, machine.times(), known_cpu_s=math.inf)
        for size, count in ((1, connections[0]), (best, connections[-1])):
            calls_ms = sorted(each * 1000 for each in took_s[size])
            result = Round(
                number=number,
                system=BARE,
                way=way,
                connections=count,
                requests=len(calls_ms) * size,
                per_s=per_s[size],
                errors=0,
                checked=0,
                wrong=0,
                latency_ms={50.0: median(calls_ms), 99.0: calls_ms[int(0.99 * len(calls_ms))]},
                cpu_us={},
                generator_cpu_us=0.0,
                steal=noise.steal,
                foreign=0.0,
                is_noisy=noise.steal > machine.STEAL_LIMIT,
            )
            self.rounds.append(result)
            say(result, f"  batches of {size}")

    def _measure(self, number: int, system: System, made: Made) -> None:
        requests = {way: self._workload.request(system, way, made) for way in self._workload.ways}
        posted = {way: request for way, request in requests.items() if request}
        folder = self._folder / f"{system.name}-{number}"
        folder.mkdir()
        place = Place(
            bin=self._programs[system.name],
            port=processes.free_port(),
            spare_port=processes.free_port(),
            folder=folder,
            model=made.file,
            tracking_uri=made.tracking_uri,
            workload=PERCEPTRON.name if self._workload is LARGE else self._workload.name,
            n_workers=self._workload.n_workers,
            model_name=made.name,
        )
        targets = {way: write_target(request, place) for way, request in posted.items()}
        try:
            with processes.running(system, place, next(iter(targets.values()))):
                for way, target in targets.items():
                    with self._beside(way, place):
                        self._measure_way(number, system, place, way, target)
                if system.accept_path and SYNC in targets:
                    self._measure_accepted(number, system, place, targets[SYNC])
        except (StartError, LoadError) as error:
            self._fail(system, str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _measure_way(self, number: int, system: System, place: Place, way: str, target: Target) -> None:
        for connections in self._workload.ways[way]:
            Generator(target, place.folder, connections, self._plan.warm_s).finish()
            processes.settle(target)
            self._round(number, system, way, connections, self._sync(place, target, connections))

    @contextmanager
    def _beside(self, way: str, place: Place) -> Iterator[None]:
        """Post large bodies in a loop for the duration of the context, if this way says so."""
        if self._workload is not LARGE or way == ALONE:
            yield
            return
        beside = Generator(large_target(place), place.folder, 1, 3600)
        try:
            yield
        finally:
            beside.end_early()
            seen = beside.finish()
            print(
                f"  beside: {seen.requests} large bodies, {seen.errors} errors, p50 {seen.latency_ms[50.0]:.0f} ms"
            )
            if seen.errors:
                raise LoadError(f"{seen.errors} of {seen.requests} large bodies were not answered with 200")

    def _measure_accepted(self, number: int, system: System, place: Place, target: Target) -> None:
        posts = replace(target, url=f"http://{LOOPBACK}:{place.port}{system.accept_path}", class_pattern="")

        def drain(n_jobs: int) -> tuple[float, Load]:
            took_s, seen = accepted.drain(system, place, posts, ACCEPT_CONNECTIONS, n_jobs)
            return n_jobs / took_s, seen

        drain(self._plan.n_jobs // 10)  # warm-up with the same load
        self._round(number, system, ACCEPTED, ACCEPT_CONNECTIONS, partial(drain, self._plan.n_jobs))

    def _sync(self, place: Place, target: Target, connections: int) -> Callable[[], tuple[float, Load]]:
        def measure() -> tuple[float, Load]:
            seen = Generator(target, place.folder, connections, self._measure_s).finish()
            return seen.per_s, seen

        return measure

    def _round(
        self,
        number: int,
        system: System,
        way: str,
        connections: int,
        measure: Callable[[], tuple[float, Load]],
    ) -> None:
        pids = machine.descendants(os.getpid())
        cpu_before, times_before, own_before = (
            machine.cpu_by_label(pids, system.labels),
            machine.times(),
            time.process_time(),
        )
        per_s, seen = measure()
        cpu_after, times_after = machine.cpu_by_label(pids, system.labels), machine.times()
        cpu_s = {label: cpu_after.get(label, 0.0) - before for label, before in cpu_before.items()}
        known_s = sum(cpu_s.values()) + seen.generator_cpu_s + time.process_time() - own_before
        noise = machine.noise(times_before, times_after, known_s)
        n_requests = max(seen.requests, 1)
        result = Round(
            number=number,
            system=system.name,
            way=way,
            connections=connections,
            requests=seen.requests,
            per_s=per_s,
            errors=seen.errors,
            checked=seen.checked,
            wrong=seen.wrong,
            latency_ms=seen.latency_ms,
            cpu_us={label: used_s / n_requests * 1e6 for label, used_s in cpu_s.items()},
            generator_cpu_us=seen.generator_cpu_s / n_requests * 1e6,
            steal=noise.steal,
            foreign=noise.foreign,
            is_noisy=noise.is_loud,
        )
        self.rounds.append(result)
        say(result)

    def _report(self) -> None:
        folder = RESULTS / self._workload.name
        folder.mkdir(parents=True, exist_ok=True)
        summaries = report.summarise(self.rounds)
        report.write_csv(self.rounds, folder / "rounds.csv")
        is_perceptron = self._workload is PERCEPTRON
        text = self._perceptron(summaries) if is_perceptron else self._real(summaries)
        (folder / "table.md").write_text(text)
        if self.rounds and is_perceptron:
            plots.draw_all(summaries, PERCEPTRON.ways[SYNC], folder)
        is_last = max((each.number for each in self.rounds), default=0) == self._plan.n_rounds
        if self._plan.publish and is_last:
            README.write_text(with_section(README.read_text(), self._workload.name, text))
            if is_perceptron:
                shutil.copy(folder / "throughput.png", HERE / "throughput.png")

    def _perceptron(self, summaries: Sequence[report.Summary]) -> str:
        connections = PERCEPTRON.ways[SYNC]
        return "\n".join(
            [
                f"Measured on {self._started_at:%Y-%m-%d}: {machine.describe()}. Load: {self._generator}. "
                f"{self._rounds_in_words()} Accepted jobs/s: "
                f"{self._plan.n_jobs:,} posts answered 202, timed until every outcome was written. "
                f"The load generator used {self._generator_cpu()} µs of CPU per request.",
                "",
                report.table(summaries, connections, self._about),
                "",
                report.ratios(summaries, connections),
                *self._incomplete(),
            ]
        )

    def _real(self, summaries: Sequence[report.Summary]) -> str:
        return "\n".join(
            [
                f"{self._workload.about} {machine.describe()}. {self._rounds_in_words()}",
                "",
                report.ways_table(summaries, self._about),
                "",
                report.ways_ratios(summaries),
                *self._incomplete(),
            ]
        )

    def _rounds_in_words(self) -> str:
        n_rounds = max((each.number for each in self.rounds), default=0)
        return (
            f"Medians of {n_rounds} interleaved rounds of {self._measure_s} s after {self._plan.warm_s} s of "
            "warm-up."
        )

    def _incomplete(self) -> list[str]:
        failures = [f"- {name}: {why.splitlines()[0]}" for name, why in sorted(self._failures.items())]
        return ["", "Not measured completely:", "", *failures] if failures else []

    def _fail(self, system: System, why: str) -> None:
        self._failures[system.name] = why
        print(f"{system.name}: {why}", file=sys.stderr, flush=True)

    def _generator_cpu(self) -> str:
        found = sorted(each.generator_cpu_us for each in self.rounds if each.connections > 1)
        return f"{found[len(found) // 2]:.0f}" if found else "?"


def write_target(request: Request, place: Place) -> Target:
    """Write the bodies of a request into files, and tell where to post them."""
    lines = []
    for number, (label, body) in enumerate(request.bodies):
        text = body.decode() if request.content_type == wrk_load.JSON else ""
        if not text:
            file = place.folder / f"{len(os.listdir(place.folder))}-{number}.body"
            file.write_bytes(body)
            text = f"@{file}"
        lines.append(f"{label}\t{text}\n")
    bodies = place.folder / f"bodies-{len(os.listdir(place.folder))}.txt"
    bodies.write_text("".join(lines))
    return Target(
        f"http://{LOOPBACK}:{place.port}{request.path}", bodies, request.pattern, request.content_type
    )


def large_target(place: Place) -> Target:
    """A body of nearly 8 MiB for the perceptron: as many digits as a request may hold."""
    body = json.dumps({"data": [[[[0.123456] * 28] * 28]] * MAX_SAMPLES}).encode()
    return write_target(Request("/predict?wait=30", wrk_load.JSON, [(0, body)], ""), place)


def with_section(page: str, name: str, text: str) -> str:
    """A page with another text between the marks of a section.

    Raises:
        ValueError: The page has no such section.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"{README} has no section between {begin.strip()} and {end}")
    return re.sub(
        re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}{text}\n{end}", page, flags=re.DOTALL
    )


def say(result: Round, more: str = "") -> None:
    """Print a round."""
    cpu = ", ".join(f"{label} {cpu_us:.0f}" for label, cpu_us in result.cpu_us.items())
    remark = f"  noisy: steal {result.steal:.1%}, others {result.foreign:.1%}" if result.is_noisy else ""
    wrong = f"  {result.errors} errors, {result.wrong} wrong" if result.errors or result.wrong else ""
    print(
        f"{result.number} {result.system:<15} {result.way:<10} {result.connections:>3}  {result.per_s:8,.1f}/s  "
        f"p50 {result.latency_ms[50.0]:7.1f}  p99 {result.latency_ms[99.0]:7.1f} ms  "
        f"CPU µs: {cpu}{wrong}{remark}{more}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
