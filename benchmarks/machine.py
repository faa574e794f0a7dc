"""The machine and its load: cores, processor, steal time, foreign CPU time, CPU time per process."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STEAL_LIMIT = 0.02
FOREIGN_LIMIT = 0.05


@dataclass(frozen=True)
class MachineTimes:
    """CPU seconds of the whole machine since its start.

    Attributes:
        busy_s: In user and kernel code of processes.
        total_s: Of all kinds, idle included.
    """

    busy_s: float
    steal_s: float
    total_s: float


@dataclass(frozen=True)
class Noise:
    """Disturbance of a round, as fractions of the machine's CPU time.

    Attributes:
        steal: Taken by the hypervisor.
        foreign: Used by processes that are not part of the measurement.
    """

    steal: float
    foreign: float

    @property
    def is_loud(self) -> bool:
        """Whether a fraction is above its limit."""
        return self.steal > STEAL_LIMIT or self.foreign > FOREIGN_LIMIT


def describe() -> str:
    """Cores, processor and kernel in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores, {name}, Linux {platform.release()}, Python {platform.python_version()}"


def times() -> MachineTimes:
    """Read the machine's CPU times."""
    return parse_times(Path("/proc/stat").read_text())


def parse_times(stat: str) -> MachineTimes:
    """Read the first line of `/proc/stat` (proc(5)): user nice system idle iowait irq softirq steal."""
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(word) / TICKS_PER_S for word in stat.split("\n", 1)[0].split()[1:9]
    )
    return MachineTimes(
        user + nice + system, steal, user + nice + system + idle + iowait + irq + softirq + steal
    )


def noise(before: MachineTimes, after: MachineTimes, known_cpu_s: float) -> Noise:
    """The disturbance between two readings.

    Args:
        known_cpu_s: CPU seconds of everything that belongs to the measurement.
    """
    total_s = max(after.total_s - before.total_s, 1e-9)
    foreign_s = max(after.busy_s - before.busy_s - known_cpu_s, 0.0)
    return Noise((after.steal_s - before.steal_s) / total_s, foreign_s / total_s)


def children(pid: int) -> list[int]:
    """Process ids directly below a process."""
    return _by_parent().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Process ids below a process, itself not included."""
    by_parent = _by_parent()
    found, todo = list[int](), [pid]
    while todo:
        below = by_parent.get(todo.pop(), [])
        found += below
        todo += below
    return found


def cpu_of(pid: int) -> float:
    """CPU seconds of one process, in user and kernel code of all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def cpu_by_label(pids: Sequence[int], labels: Sequence[tuple[str, str]]) -> dict[str, float]:
    """CPU seconds of processes and their reaped children, summed by label.

    Args:
        labels: Words of a command line and the label they give; the first that fits counts, else the
            process's own name.
    """
    wanted, cpu_s = set(pids), dict[str, float]()
    for pid, fields in _all_stats():
        if pid in wanted:
            label = _label(pid, labels)
            cpu_s[label] = cpu_s.get(label, 0.0) + sum(int(field) for field in fields[11:15]) / TICKS_PER_S
    return cpu_s


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """Largest resident memory that a process has had (proc(5), `VmHWM`)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def held_bytes(pid: int) -> int:
    """Resident memory of a process and its forks, each page counted once.

    Anonymous pages that a fork left shared are divided among those that map them (proc(5), `Pss_Anon`), so that they
    add up. Pages of files, of which the kernel tells that only together with who else maps them, are mostly
    libraries that all of them map: they count as often as the process has that has most of them.
    """
    told = [_smaps_rollup(each) for each in (pid, *descendants(pid))]
    return sum(each["Pss_Anon"] for each in told) + max(each["Rss"] - each["Anonymous"] for each in told)


def _smaps_rollup(pid: int) -> dict[str, int]:
    """Sums over all mappings of a process, in bytes."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def _by_parent() -> dict[int, list[int]]:
    by_parent: dict[int, list[int]] = {}
    for pid, fields in _all_stats():
        by_parent.setdefault(int(fields[1]), []).append(pid)
    return by_parent


def _label(pid: int, labels: Sequence[tuple[str, str]]) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
    return next((label for words, label in labels if words in command), name)


def _all_stats() -> list[tuple[int, list[str]]]:
    """Each process's id and its fields in `/proc/<pid>/stat` from the state on (proc(5), field 3)."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                text = (path / "stat").read_text()
            except OSError:
                continue  # the process has ended
            found.append((int(path.name), text.rpartition(")")[2].split()))
    return found
