"""Resource use of a pool's processes and Redis over time: read, written as CSV, plotted."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from faults.fault_pool import Pool, rss_mib

TABLE, PLOT = Path("soak.csv"), Path("soak.png")
OF_PROCESS = {"RSS": "resident memory, MiB", "descriptors": "open file descriptors"}
OF_REDIS = {"keys": "Redis: keys", "memory": "Redis: memory, MiB", "connections": "Redis: connections"}
Reading = dict[str, float]


def read(pool: Pool) -> Reading:
    """The present values; killed or unavailable processes are left out."""
    found: Reading = {}
    for name, pid in _pids(pool).items():
        with suppress(OSError):
            rss, descriptors = rss_mib(pid), os.listdir(f"/proc/{pid}/fd")
            found |= {f"{name} RSS": rss, f"{name} descriptors": float(len(descriptors))}
    with suppress(redis.RedisError):
        told = pool.client.info()
        found["Redis keys"] = pool.client.dbsize()
        found["Redis memory"] = told["used_memory"] / 2**20
        found["Redis connections"] = told["connected_clients"]
    return found


def _pids(pool: Pool) -> dict[str, int]:
    """Process ids by name; a worker's is that of its serving process."""
    found = {process.name: process.pid for process in (*pool.controllers, pool.redis)}
    with suppress(redis.RedisError):
        found |= {worker.name: record.pid for worker in pool.workers if (record := pool.serving(worker))}
    return found


def is_of_process(name: str) -> bool:
    """Whether a name in a reading belongs to a process rather than to Redis."""
    return name.rpartition(" ")[2] in OF_PROCESS


def write(readings: Sequence[Reading]) -> None:
    """Write every reading as a line of `soak.csv`."""
    columns = list(dict.fromkeys(name for each in readings for name in each))
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: round(value, 1) for name, value in each.items()} for each in readings)


def draw(readings: Sequence[Reading]) -> None:
    """Plot one panel per quantity into `soak.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = OF_PROCESS | OF_REDIS
    figure, panels = plt.subplots(len(titles), sharex=True, figsize=(9, 12), layout="constrained")
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        _panel(axes, readings, quantity)
        axes.set_title(title, fontsize=10)
    panels[-1].set_xlabel("minutes")
    figure.savefig(PLOT, dpi=120)
    plt.close(figure)


def _panel(axes: Any, readings: Sequence[Reading], quantity: str) -> None:
    names = [name for name in readings[0] if name.endswith(f" {quantity}")]
    for name in names:
        points = [(each["t_s"] / 60, each[name]) for each in readings if name in each]
        axes.plot(*zip(*points, strict=True), lw=1.2, label=name.removesuffix(f" {quantity}"))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(fontsize=8, ncols=len(names))
