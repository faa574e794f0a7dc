"""The prefork supervisor, with children of a few lines: when it forks again, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers.worker_processes import runs
from workers.process import prefork_supervisor

WaitUntil = Callable[..., None]
Start = Callable[[str], "subprocess.Popen[str]"]
PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
from workers.process import prefork_supervisor as parent
logging.basicConfig()
children = Path("children")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

def serve(tell_ready):
    with children.open("a") as file:
        print(os.getpid(), file=file)
    n = len(children.read_text().split())
{lines}
parent.supervise(serve, Path("cleaned").touch, Path("died").touch, standstill_s=0.5)
"""


@pytest.fixture
def start(tmp_path: Path, measured: dict[str, str]) -> Iterator[Start]:
    """Starts a parent whose children run so many lines; `n` is the number of the child, from 1."""
    started: list[subprocess.Popen[str]] = []

    def start_one(lines: str) -> subprocess.Popen[str]:
        code = PROGRAM.format(lines=textwrap.indent(textwrap.dedent(lines), "    "))
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=tmp_path,
                env=measured | {"PYTHONPATH": str(Path(__file__).parents[3])},
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        with process:
            pass


def children(folder: Path) -> list[int]:
    """Ids of all children so far."""
    file = folder / "children"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


UNTOLD = "ended with status 0 without having been told to stop"


@pytest.mark.parametrize(
    ("dies", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9 (Killed)"),
        ("os._exit(70)", "ended with status 70"),
        ("os._exit(0)", UNTOLD),
        ("sys.exit(0)", UNTOLD),
        ("os.kill(os.getpid(), signal.SIGTERM)", UNTOLD),
        ("import atexit; atexit.register(os._exit, 0); 1 / 0", UNTOLD),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "was ended by signal 9 (Killed)"),
        ("sys.stdout.close(); os.close(2); sys.exit(3)", "ended with status 3"),
    ],
)
def test_a_child_that_ends_though_nobody_told_it_to_is_followed_by_another(
    start: Start, tmp_path: Path, wait_until: WaitUntil, dies: str, how: str
) -> None:
    process = start(
        f"""
        tell_ready(1)
        if n == 1:
            time.sleep(parent.SHORT_LIFE_S + 0.1)
            {dies}
        Path("followed").touch()
        time.sleep(60)
        """
    )
    wait_until((tmp_path / "followed").exists, what="another child runs")
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    first, second = children(tmp_path)
    assert len({first, second, process.pid}) == 3
    assert f"process {first}, which served for 1." in log
    assert f"{how}; starting another" in log
    assert (tmp_path / "cleaned").exists()
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("lines", "status", "says"),
    [
        ("sys.exit('no model')", 1, "no model\n"),
        ("os._exit(70)", 70, ""),
        (
            "exit()",
            prefork_supervisor.EX_SOFTWARE,
            "ERROR:workers.process.prefork_supervisor:the serving process ended with status 0 before it "
            "was ready; a model must not end its process while it loads\n",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            128 + signal.SIGKILL,
            "ERROR:workers.process.prefork_supervisor:the serving process was ended by signal 9 "
            "(Killed) before it was ready\n",
        ),
        # Whatever it has started may outlive it, and hold what it had open.
        ("os.fork() or (time.sleep(2), os._exit(0)); os._exit(3)", 3, ""),
    ],
)
def test_a_first_child_that_is_never_ready_ends_its_parent_with_a_status_that_tells(
    start: Start, tmp_path: Path, lines: str, status: int, says: str
) -> None:
    process = start(lines)
    assert process.wait(30) == status
    assert len(children(tmp_path)) == 1
    assert process.communicate()[1] == says
    assert (tmp_path / "cleaned").exists()


def test_a_later_child_that_is_not_ready_in_its_turn_is_followed_too(
    start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    process = start("n == 2 and sys.exit('Redis refuses'); tell_ready(1); n == 3 and time.sleep(60)")
    wait_until(lambda: len(children(tmp_path)) == 3, what="a third child runs")
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "which was not ready yet, ended with status 1; starting another" in log


@pytest.mark.parametrize(
    "deaf", ["signal.signal(signal.SIGTERM, signal.SIG_IGN)", "os.kill(os.getpid(), 19)"]
)
def test_a_child_that_does_not_hear_that_it_is_to_stop_ends_nevertheless(
    start: Start, tmp_path: Path, wait_until: WaitUntil, deaf: str
) -> None:
    process = start(f"tell_ready(1); Path('ready').touch(); {deaf}; time.sleep(60)")
    wait_until((tmp_path / "ready").exists, what="the child is ready")
    process.terminate()
    assert process.wait(30) in (0, 128 + signal.SIGKILL)
    assert len(children(tmp_path)) == 1


def test_children_that_die_as_soon_as_they_are_ready_are_followed_after_growing_pauses(
    start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    process = start("tell_ready(1); (tmp := Path('at')).open('a').write(f'{time.monotonic()} '); os.abort()")
    at = tmp_path / "at"
    wait_until(lambda: at.exists() and at.read_text().count(" ") >= 4, what="four children were ready")
    first, second, third, fourth, *_ = map(float, at.read_text().split())
    assert second - first >= 0.5
    assert third - second >= 1
    assert fourth - third >= 2
    fourth_pid = children(tmp_path)[3]
    wait_until(lambda: not Path(f"/proc/{fourth_pid}").exists(), what="the parent knows of the last death")
    process.terminate()  # in a pause
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_reaches_the_child_once_whose_status_is_the_parents(
    start: Start, tmp_path: Path, wait_until: WaitUntil, number: signal.Signals
) -> None:
    process = start(
        f"""
        heard = []
        signal.signal({int(number)}, lambda *_: heard.append(1))
        tell_ready(1)
        Path("ready").touch()
        while not heard:
            time.sleep(0.01)
        time.sleep(0.3)
        os._exit(40 + len(heard))
        """
    )
    wait_until((tmp_path / "ready").exists, what="the child is ready")
    # As Ctrl-C in a terminal does: to all of its group.
    subprocess.run(["kill", f"-{int(number)}", "--", f"-{process.pid}"], check=True)
    assert process.wait(30) == 41
    assert len(children(tmp_path)) == 1


def test_a_parent_that_is_told_to_end_before_its_child_listens_ends_with_status_0(
    start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    process = start("time.sleep(60)")
    wait_until(lambda: children(tmp_path), what="there is a child")
    process.terminate()
    assert process.wait(30) == 0


def test_a_parent_that_is_killed_takes_its_child_along(
    start: Start, tmp_path: Path, wait_until: WaitUntil
) -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); tell_ready(1); time.sleep(60)")
    wait_until(lambda: children(tmp_path), what="there is a child")
    [child] = children(tmp_path)
    assert runs(child)
    process.kill()
    wait_until(lambda: not runs(child), what="the child is gone")
    assert not (tmp_path / "cleaned").exists()


def test_what_a_parent_imports_and_loads_starts_no_thread_that_a_fork_would_lose(tmp_path: Path) -> None:
    code = """
        import importlib, os, threading
        import workers.main
        from workers import model
        def others():
            tasks = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
            return [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
        for module in model.PT2_MODULES:
            importlib.import_module(module)
        print(threading.active_count(), *others())
        import mlflow.pyfunc, mlflow.pytorch
        print(threading.active_count(), *others())
        """
    # These look after their threads in a fork by themselves: OpenBLAS in NumPy, which starts none if it may have but
    # one, and jemalloc in pyarrow, which MLflow imports. MLflow also imports polars if it is installed, whose one
    # thread removes files that polars has spilled to disk; the threads that compute are started by their first use.
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    said = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, cwd=tmp_path, text=True
    )
    assert re.sub(" (jemalloc_bg_thd|polars-ooc-clea)", "", said).splitlines() == ["1", "1"]
