"""Measures the cost of Redis's `appendfsync always` against `everysec`: `python -m faults.fsync`; needs wrk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles

from benchmarks.wrk_load import Generator, Target
from faults import fault_registry
from faults.fault_pool import Pool, PoolPlan, open_pool

POLICIES = ("everysec", "always")
ROUNDS = 3
ROUND_S = 5
CONNECTIONS = (1, 64)
N_FSYNCS = 300
BLOCK = bytes(4096)
BODY = '0\t{"data": [[0, 0, 0, 0]]}\n'


def main() -> None:
    """Measure both in turn, on pools that run side by side, and print medians."""
    with tempfile.TemporaryDirectory(prefix="fsync-") as name, ExitStack() as stack:
        folder = Path(name)
        fault_registry.lay_out(folder)
        (folder / "bodies").write_text(BODY)
        pools = {policy: stack.enter_context(pool_with(policy, folder)) for policy in POLICIES}
        fsyncs_ms = fsync_ms(pools["always"].folder)
        print(
            f"fdatasync of 4 KiB: median {median(fsyncs_ms):.2f} ms, p99 {quantiles(fsyncs_ms, n=100)[98]:.2f} ms"
        )
        for connections in CONNECTIONS:
            rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            waits_ms: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            for _ in range(ROUNDS):
                for policy, pool in pools.items():
                    load = Generator(target(pool, folder), folder, connections, ROUND_S).finish()
                    rates[policy].append(load.per_s)
                    waits_ms[policy].append(load.latency_ms[50.0])
            for policy in POLICIES:
                per_s, ms = median(rates[policy]), median(waits_ms[policy])
                print(
                    f"{connections} connections, {policy}: {per_s:.0f} jobs accepted per second, p50 {ms:.1f} ms"
                )


@contextmanager
def pool_with(policy: str, models: Path) -> Iterator[Pool]:
    """A pool of one controller and one worker, with this `appendfsync` policy."""
    plan = PoolPlan(replicas=1, controllers=1, redis_options=(f"appendfsync {policy}",))
    with open_pool(plan, models, short=False) as pool:
        yield pool


def target(pool: Pool, folder: Path) -> Target:
    """The target of wrk, with a deadline longer than any backlog of this measurement."""
    return Target(f"{pool.urls[0]}/predict?deadline=3600", folder / "bodies", "")


def fsync_ms(folder: Path) -> list[float]:
    """Times, ms, to make 4 KiB durable on the disk of a folder."""
    found = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(N_FSYNCS):
            file.write(BLOCK)
            file.flush()
            start_s = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append((time.perf_counter() - start_s) * 1000)
    return found


if __name__ == "__main__":
    main()
