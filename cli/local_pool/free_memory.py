"""The free memory of this machine, or of a control group that this process runs in, if that has less."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# limit, use, and the key of `memory.stat` with the cache that the kernel takes back first; of cgroup v2 and v1
UNIFIED = ("memory.max", "memory.current", "inactive_file")
LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Free memory in bytes; infinite if unknown.

    Args:
        proc: The system's `/proc`.
        groups: Where the control groups are mounted.
    """
    return min(_of_machine(proc), *_of_groups(proc, groups), math.inf)


def _of_machine(proc: Path) -> float:
    with suppress(OSError, KeyError, ValueError):
        rows = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return float(rows["MemAvailable"].split()[0]) * 1024
    return math.inf


def _of_groups(proc: Path, groups: Path) -> Iterator[float]:
    """Free memory of the group of this process and of those around it, as far as they have limits.

    A container may see its own group as the root, while `/proc` tells the host's path of it.
    """
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or controllers == "memory":
                root, names = (groups, UNIFIED) if number == "0" else (groups / "memory", LEGACY)
                parts = path.strip("/").split("/")
                for depth in range(len(parts) + 1):
                    with suppress(OSError, KeyError, ValueError):  # no such group, or no limit ("max")
                        yield _of_group(root.joinpath(*parts[:depth]), *names)


def _of_group(folder: Path, limit: str, used: str, cache: str) -> float:
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return float((folder / limit).read_text()) - float((folder / used).read_text()) + float(stat[cache])
