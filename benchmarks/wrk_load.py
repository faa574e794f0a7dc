"""The load generator: wrk with `load.lua`, which posts prepared bodies and checks sampled answers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
GRACE_S = 15.0
ANSWER_TIMEOUT_S = 10
JSON = "application/json"
MARKER = "posted-"  # prefix of the marker lines of `load.lua`


_numbers = itertools.count()


class LoadError(Exception):
    """The load generator failed; the text says what to do."""


@dataclass(frozen=True)
class Target:
    """The URL and bodies of a load, and the pattern of a correct answer.

    Attributes:
        bodies: File of lines `class<TAB>body`; `@path` is a file that holds the body.
        class_pattern: Lua pattern whose capture is the predicted class or a list of scores; empty checks nothing.
    """

    url: str
    bodies: Path
    class_pattern: str
    content_type: str = JSON


@dataclass(frozen=True)
class Load:
    """The result of one wrk run.

    Attributes:
        duration_s: Wall time.
        requests: Answers received.
        errors: Answers that are not 2xx, socket errors and time-outs.
        checked: Answers whose class was compared.
        wrong: Of those, the ones with another class than the model's.
        latency_ms: By percentile.
        generator_cpu_s: CPU time of wrk itself.
    """

    duration_s: float
    requests: int
    errors: int
    checked: int
    wrong: int
    latency_ms: dict[float, float]
    generator_cpu_s: float

    @property
    def per_s(self) -> float:
        """Successful answers per second."""
        return max(self.requests - self.errors, 0) / self.duration_s


def parse_report(text: str, generator_cpu_s: float) -> Load:
    """Read the report that `load.lua` writes."""
    report = json.loads(text)
    return Load(
        duration_s=report["duration_us"] / 1e6,
        requests=report["requests"],
        errors=report["not_2xx"] + report["socket_errors"] + report["timeouts"],
        checked=report["checked"],
        wrong=report["wrong"],
        latency_ms={float(percentile): us / 1000 for percentile, us in report["latency_us"].items()},
        generator_cpu_s=generator_cpu_s,
    )


def version() -> str:
    """Name and version of the load generator.

    Raises:
        LoadError: It is not installed.
    """
    path = shutil.which("wrk")
    if not path:
        raise LoadError("wrk is not installed: on Debian or Ubuntu, run apt install wrk")
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(answer.split()[:2])


class Generator:
    """A wrk run in progress.

    Args:
        folder: Where its report goes.
        duration_s: Seconds until it stops.
        stop_after: Responses after which it stops posting; 0 for the whole duration.
    """

    def __init__(
        self, target: Target, folder: Path, connections: int, duration_s: int, stop_after: int = 0
    ) -> None:
        self._duration_s = duration_s
        self._report = folder / f"wrk-{next(_numbers)}.json"
        n_threads = min(2, connections)
        command = [
            *("wrk", "--threads", str(n_threads), "--connections", str(connections)),
            *("--duration", f"{duration_s}s", "--timeout", f"{ANSWER_TIMEOUT_S}s", "--script", str(SCRIPT)),
            *(target.url, "--", str(target.bodies), target.class_pattern, str(self._report)),
            *(str(stop_after // n_threads), str(folder / MARKER), target.content_type),
        ]
        output = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        """Process id of wrk."""
        return self._process.pid

    def end_early(self) -> None:
        """Ask wrk to stop now and report."""
        self._process.send_signal(signal.SIGINT)

    def finish(self) -> Load:
        """Wait for the end.

        Raises:
            LoadError: wrk could not connect, or does not end.
        """
        before = os.times()
        try:
            _, errors = self._process.communicate(timeout=self._duration_s + GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise LoadError(f"wrk did not end within {self._duration_s + GRACE_S:g} s") from None
        after = os.times()
        if not self._report.exists():
            raise LoadError(f"wrk wrote no report: {errors.strip() or 'no error message'}")
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        return parse_report(self._report.read_text(), cpu_s)
