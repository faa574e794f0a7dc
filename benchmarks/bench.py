"""Benchmark Modelyard against other servers: `make bench`. Each runs alone; rounds are interleaved."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks import accepted, digit_bodies, envs, machine, plots, processes, report, wrk_load
from benchmarks.processes import StartError
from benchmarks.report import ACCEPTED, SYNC, Round
from benchmarks.systems import LOOPBACK, SYSTEMS, Place, System
from benchmarks.wrk_load import Generator, Load, LoadError, Target

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"
CONNECTIONS = (1, 64, 256)
ACCEPT_CONNECTIONS = 64


@dataclass(frozen=True)
class Plan:
    """The extent of a run.

    Attributes:
        warm_s: Seconds of the same load before each measurement.
        measure_s: Seconds of each measurement.
        n_jobs: Number of jobs of the asynchronous measurement.
    """

    systems: tuple[System, ...]
    n_rounds: int
    warm_s: int
    measure_s: int
    n_jobs: int
    publish: bool


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="systems to measure, separated by commas; default: all")
    parser.add_argument("--quick", action="store_true", help="measure two short rounds")
    parser.add_argument("--rounds", type=int, default=0, help="number of rounds; default: 5, with --quick 2")
    arguments = parser.parse_args()
    plan = make_plan(arguments.only, quick=arguments.quick, n_rounds=arguments.rounds)
    try:
        generator = wrk_load.version()
    except LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(plan, Path(folder), generator)
        try:
            bench.run()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        finally:
            processes.stop_all()
    return 0 if bench.rounds else 1


def make_plan(only: str, *, quick: bool, n_rounds: int) -> Plan:
    """The plan that the command line asks for.

    Raises:
        SystemExit: It names an unknown system.
    """
    names = only.split(",") if only else [system.name for system in SYSTEMS]
    by_name = {system.name: system for system in SYSTEMS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"bench: unknown system {', '.join(unknown)}; known: {', '.join(by_name)}")
    chosen = tuple(by_name[name] for name in names)
    if quick:
        return Plan(chosen, n_rounds or 2, warm_s=1, measure_s=2, n_jobs=2_000, publish=False)
    return Plan(chosen, n_rounds or 5, warm_s=1, measure_s=3, n_jobs=10_000, publish=not only)


class Bench:
    """One run of the benchmark.

    Args:
        folder: Scratch folder.
        generator: Name and version of the load generator.
    """

    def __init__(self, plan: Plan, folder: Path, generator: str) -> None:
        self.rounds: list[Round] = []
        self._plan = plan
        self._folder = folder
        self._generator = generator
        self._started_at = datetime.now(UTC)
        self._programs: dict[str, Path] = {}
        self._about: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    def run(self) -> None:
        """Install, measure, report."""
        for system in self._plan.systems:
            self._install(system)
        model = digit_bodies.make_model(envs.ENVIRONMENTS)
        for number in range(1, self._plan.n_rounds + 1):
            for system in self._plan.systems:
                if system.name not in self._failures:
                    self._measure(number, system, model)
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

    def _measure(self, number: int, system: System, model: digit_bodies.Model) -> None:
        folder = self._folder / f"{system.name}-{number}"
        folder.mkdir()
        place = Place(
            bin=self._programs[system.name],
            port=processes.free_port(),
            spare_port=processes.free_port(),
            folder=folder,
            model=model.file,
            tracking_uri=model.tracking_uri,
        )
        bodies = folder / "bodies.txt"
        digit_bodies.write_bodies(system, model, bodies)
        target = Target(f"http://{LOOPBACK}:{place.port}{system.path}", bodies, system.class_pattern)
        try:
            with processes.running(system, place, target):
                self._measure_running(number, system, place, target)
        except (StartError, LoadError) as error:
            self._fail(system, str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _measure_running(self, number: int, system: System, place: Place, target: Target) -> None:
        for connections in CONNECTIONS:
            Generator(target, place.folder, connections, self._plan.warm_s).finish()
            self._round(number, system, SYNC, connections, self._sync(place, target, connections))
        if system.accept_path:
            posts = replace(
                target, url=f"http://{LOOPBACK}:{place.port}{system.accept_path}", class_pattern=""
            )

            def drain(n_jobs: int) -> tuple[float, Load]:
                took_s, seen = accepted.drain(system, place, posts, ACCEPT_CONNECTIONS, n_jobs)
                return n_jobs / took_s, seen

            drain(self._plan.n_jobs // 10)  # warm-up with the same load
            self._round(number, system, ACCEPTED, ACCEPT_CONNECTIONS, partial(drain, self._plan.n_jobs))

    def _sync(self, place: Place, target: Target, connections: int) -> Callable[[], tuple[float, Load]]:
        def measure() -> tuple[float, Load]:
            seen = Generator(target, place.folder, connections, self._plan.measure_s).finish()
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

    def _fail(self, system: System, why: str) -> None:
        self._failures[system.name] = why
        print(f"{system.name}: {why}", file=sys.stderr, flush=True)

    def _report(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        summaries = report.summarise(self.rounds)
        report.write_csv(self.rounds, RESULTS / "rounds.csv")
        text = self._markdown(summaries)
        (RESULTS / "table.md").write_text(text)
        if self.rounds:
            plots.draw_all(summaries, CONNECTIONS, RESULTS)
        if (
            self._plan.publish
            and max((each.number for each in self.rounds), default=0) == self._plan.n_rounds
        ):
            README.write_text(text)
            shutil.copy(RESULTS / "throughput.png", HERE / "throughput.png")

    def _markdown(self, summaries: Sequence[report.Summary]) -> str:
        failures = "\n".join(
            f"- {name}: {why.splitlines()[0]}" for name, why in sorted(self._failures.items())
        )
        return "\n".join(
            [
                HEADING,
                f"Measured on {self._started_at:%Y-%m-%d}: {machine.describe()}. Load: {self._generator}. "
                f"Medians of {max((each.number for each in self.rounds), default=0)} interleaved rounds of "
                f"{self._plan.measure_s} s after {self._plan.warm_s} s of warm-up. Accepted jobs/s: "
                f"{self._plan.n_jobs:,} posts answered 202, timed until every outcome was written. "
                f"The load generator used {self._generator_cpu()} µs of CPU per request.",
                "",
                report.table(summaries, CONNECTIONS, self._about),
                "",
                report.ratios(summaries, CONNECTIONS),
                "",
                *(["Not measured completely:", "", failures, ""] if failures else []),
                EXPLANATION,
            ]
        )

    def _generator_cpu(self) -> str:
        found = sorted(each.generator_cpu_us for each in self.rounds if each.connections > 1)
        return f"{found[len(found) // 2]:.0f}" if found else "?"


def say(result: Round) -> None:
    """Print a round."""
    cpu = ", ".join(f"{label} {cpu_us:.0f}" for label, cpu_us in result.cpu_us.items())
    remark = f"  noisy: steal {result.steal:.1%}, others {result.foreign:.1%}" if result.is_noisy else ""
    wrong = f"  {result.errors} errors, {result.wrong} wrong" if result.errors or result.wrong else ""
    print(
        f"{result.number} {result.system:<15} {result.way:<8} {result.connections:>3}  {result.per_s:8,.0f}/s  "
        f"p50 {result.latency_ms[50.0]:7.1f}  p99 {result.latency_ms[99.0]:7.1f} ms  CPU µs: {cpu}{wrong}{remark}",
        flush=True,
    )


HEADING = """# Benchmark

`make bench` writes this page: do not edit it. `make bench ONLY=modelyard,mosec` measures some systems, `QUICK=1` uses
short rounds (under three minutes for a few systems). Both write to `benchmarks/results/` only.

![Predictions per second of each system](throughput.png)
"""

EXPLANATION = """## How it is measured

- **Work.** Each request holds one sample of 1x1x28x28 pixels as JSON with 4 decimals. The model is a perceptron of
  784, 128 and 10 units on the CPU, with one thread. Systems and load generator share one machine and use loopback.
- **Rounds.** In each round every system is started alone, warmed with the same load, measured at each number of
  connections, and stopped.
- **Peers.** Each has an environment of its own with pinned versions (`peers/*/requirements.txt`). It is configured as
  its documentation advises for small requests, with batching where available (except MLServer, which was slower with
  it). *mosec* reads JSON with the standard library; *mosec-orjson* replaces that decoder by orjson. The two bare
  handlers (*constant*, *inline*) use Modelyard's environment.
- **Correctness.** Two threads of wrk post real digits of one class each. The class in every 16th answer is compared
  with the model's. *Errors* counts answers other than 2xx, socket errors and time-outs.
- **CPU time** is read per process from `/proc` before and after, and divided by the number of answered requests.
- **Noise.** A round is *noisy* if the hypervisor took more than 2 % of the CPU time, or processes outside the
  measurement more than 5 %. Compare ratios within one run, not figures of different runs.
"""

if __name__ == "__main__":
    sys.exit(main())
