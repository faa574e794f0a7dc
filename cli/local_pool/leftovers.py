"""Finds and ends processes of a pool that survived its supervisor, by an environment variable set by supervisord.

Linux only; on other systems no process is found.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.process.fork_server import FORK_OF

CONTROL_SOCKET = "ctl"
SERVICE = b"SUPERVISOR_PROCESS_NAME"  # from supervisord
KILL_WAIT_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True)
class Leftover:
    """A process of a pool.

    Attributes:
        name: Name of the service; "supervisord" for supervisord itself.
    """

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def mark(folder: Path) -> tuple[str, str]:
    """Name and value of the environment variable that every process of a pool has: supervisord's address.

    Args:
        folder: State directory, absolute.
    """
    return "SUPERVISOR_SERVER_URL", f"unix://{folder / CONTROL_SOCKET}"


def processes(folder: Path) -> list[Leftover]:
    """All processes of the pool of a state directory, by process id."""
    wanted = "=".join(mark(folder.resolve())).encode()
    found, client_of = dict[int, str](), dict[int, int]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "comm").read_text(errors="replace").strip()
        except OSError:  # it has just ended, or belongs to another user
            continue
        if wanted in variables and int(entry.name) != os.getpid():
            values = dict(each.partition(b"=")[::2] for each in variables)
            found[int(entry.name)] = values.get(SERVICE, b"supervisord").decode(errors="replace")
            if command.startswith(FORK_OF):
                client_of[int(entry.name)] = int(command.removeprefix(FORK_OF))
    # the environment of a fork is the fork server's
    return [Leftover(pid, found.get(client_of.get(pid, pid), found[pid])) for pid in sorted(found)]


def processor_s(folder: Path, names: Container[str]) -> float:
    """Seconds of processor time that the running processes of services have used."""
    ticks = 0
    for process in processes(folder):
        if process.name in names:
            with suppress(OSError):  # it has just ended
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # utime and stime, see proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(folder: Path, names: Container[str]) -> Counter[str]:
    """Memory of the processes of each service, with their share of what they share with others; 0 if unknown."""
    total: Counter[str] = Counter()
    for process in processes(folder):
        if process.name in names:
            total[process.name] += proportional_bytes(process.pid)
    return total


def proportional_bytes(pid: int) -> int:
    """Memory of a process, where a page that n processes share counts as an nth of it; 0 if unknown."""
    with suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def end(folder: Path, patience_s: float, tell: Callable[[Sequence[Leftover]], object]) -> list[Leftover]:
    """Wait for the leftover processes, which were told to stop at their supervisor's death, and kill the rest.

    Args:
        folder: State directory.
        patience_s: Seconds until the rest is killed.
        tell: Called with the remaining processes while there are any, at least once before they are killed.

    Returns:
        The processes that could not be ended.
    """
    give_up_at = time.monotonic() + patience_s
    while left := processes(folder):
        tell(left)
        if time.monotonic() >= give_up_at:
            break
        time.sleep(POLL_S)
    for each in left:
        with suppress(OSError):
            os.kill(each.pid, signal.SIGKILL)
    give_up_at = time.monotonic() + KILL_WAIT_S
    while (left := processes(folder)) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    return left
