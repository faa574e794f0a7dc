"""`make simulate`: calibrate the model on this machine, check its predictions here, study what is larger."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks import load, processes
from benchmarks.load import LoadError
from benchmarks.processes import StartError
from benchmarks.simulation import calibrate, check, costs, page, study

BENCHMARKS = Path(__file__).resolve().parent.parent
COSTS = BENCHMARKS / "results" / "costs.json"
CHECK = BENCHMARKS / "results" / "check.json"
PAGE = BENCHMARKS / "scaling.md"
FIGURE = BENCHMARKS / "scaling.png"
STEPS = ("calibrate", "check", "study")


def main() -> int:
    """Run what the command line says; 1 where a prediction is too far from what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"steps, separated by commas, of {', '.join(STEPS)}")
    chosen = [step for step in parser.parse_args().only.split(",") if step] or list(STEPS)
    if unknown := [step for step in chosen if step not in STEPS]:
        parser.error(f"unknown step {', '.join(unknown)}; known: {', '.join(STEPS)}")
    try:
        measure(chosen)
    except (LoadError, StartError, TimeoutError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return write("study" in chosen)


def measure(chosen: list[str]) -> None:
    """Measure what was chosen, or was never measured here, on real pools."""
    load.version()
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing may stay behind then either
    try:
        if "calibrate" in chosen or not COSTS.exists():
            calibrate.calibrate(COSTS)
        if "check" in chosen or not CHECK.exists():
            check.measure(CHECK)
    finally:
        processes.stop_all()


def write(with_study: bool) -> int:
    """Simulate from what is in the files, and fill the page."""
    known, about = costs.read(COSTS)
    points = json.loads(CHECK.read_text())
    checked = check.compare(known, points, os.cpu_count() or 1)
    parts = {
        "costs": page.costs_table(known, about),
        "check": check.table(checked, points),
        "limits": page.limits_table(known),
    }
    print(f"{parts['costs']}\n\n{parts['check']}", flush=True)
    if with_study:
        replicas, bursts = list(study.replicas(known)), list(study.bursts(known))
        parts |= {
            "replicas": page.replicas_table(replicas),
            "slow": page.places_table(
                list(study.slow_models(known)), "n_controllers", "n_workers", "ahead", "max_jobs"
            ),
            "versions": page.places_table(list(study.versions(known)), "n_versions"),
            "bursts": page.bursts_table(bursts),
        }
        page.draw(replicas, bursts, FIGURE)
    page.fill(PAGE, parts)
    print(f"wrote {PAGE.relative_to(BENCHMARKS.parent)}")
    if check.within_limit(checked):
        return 0
    print(f"simulate: a prediction is off by more than {check.LIMIT:.0%}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
