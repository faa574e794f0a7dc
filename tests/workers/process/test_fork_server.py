"""The fork server and its clients, with programs of a few lines: what a fork inherits, and which deaths end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.workers.worker_processes import runs
from workers.process.fork_client import VARIABLE, WORD, client_command

WaitUntil = Callable[..., None]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a fork server")
WAITS = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
signal.signal(signal.SIGUSR2, lambda *_: Path("told").touch())
Path("pid.new").write_text(str(os.getpid()))
Path("pid.new").rename("pid")
time.sleep(60)
"""


class Forks:
    """A fork server in a folder that is on the path of its programs.

    Args:
        measured: Variables for the coverage of the server and its clients.
    """

    def __init__(self, folder: Path, wait_until: WaitUntil, measured: dict[str, str]) -> None:
        self.folder, self.wait_until, self.is_measured = folder, wait_until, bool(measured)
        self.socket = folder / "forks.sock"
        self.environment = os.environ | measured | {VARIABLE: str(self.socket), "PYTHONPATH": str(folder)}
        self.processes: list[subprocess.Popen[str]] = []
        command = [sys.executable, "-m", "workers.process.fork_server", str(self.socket), "json"]
        self.server = self.start(command)
        wait_until(self.listens, what="the server listens")

    def start(self, command: list[str], **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env=self.environment | variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a program by a client."""
        (self.folder / "program.py").write_text(textwrap.dedent(program))
        return self.run_again(*arguments, **variables)

    def run_again(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start the same program once more."""
        command = client_command("program", *arguments)
        if self.is_measured:  # coverage starts in `site`, which clients do without
            command = [each for each in command if each not in ("-I", "-S")]
        return self.start(command, **variables)

    def waiting(self) -> tuple[subprocess.Popen[str], int]:
        """A client, and the process id of its fork, which waits for a signal."""
        client = self.run(WAITS)
        file = self.folder / "pid"
        self.wait_until(file.exists, what="the program runs")
        return client, int(file.read_text())

    def listens(self) -> bool:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            return connection.connect_ex(str(self.socket)) == 0


@pytest.fixture
def forks(tmp_path: Path, wait_until: WaitUntil, measured: dict[str, str]) -> Iterator[Forks]:
    """A running fork server."""
    made = Forks(tmp_path, wait_until, measured)
    yield made
    made.server.terminate()
    made.server.wait()
    for process in made.processes:
        process.kill()
        process.communicate()


def test_a_fork_has_what_its_client_has_and_the_client_ends_like_it(forks: Forks) -> None:
    client = forks.run(
        """
        import os, sys
        print(os.getppid(), os.getcwd(), os.environ["OWN"], sys.argv[1:], __name__)
        sys.exit("no model")
        """,
        "an",
        "argument",
        OWN="é",
    )
    printed, errors = client.communicate(timeout=60)
    assert printed == f"{forks.server.pid} {forks.folder} é ['an', 'argument'] __main__\n"
    assert (errors, client.returncode) == ("no model\n", 1)


def test_signals_to_a_client_reach_its_fork_even_after_the_death_of_the_server(
    forks: Forks, wait_until: WaitUntil
) -> None:
    client, fork = forks.waiting()
    client.send_signal(signal.SIGUSR2)
    wait_until((forks.folder / "told").exists, what="the fork was told")
    forks.server.kill()
    forks.server.wait()
    assert runs(fork)
    client.terminate()
    client.communicate(timeout=60)
    assert client.returncode == 0  # as it was told to; only the server could tell the status
    wait_until(lambda: not runs(fork), what="the fork has ended")


def test_a_client_ends_with_the_status_of_its_fork(forks: Forks, wait_until: WaitUntil) -> None:
    client, fork = forks.waiting()
    client.terminate()
    assert client.wait(60) == 3
    killed = forks.run_again()
    wait_until(lambda: int((forks.folder / "pid").read_text()) != fork, what="another fork runs")
    os.kill(int((forks.folder / "pid").read_text()), signal.SIGKILL)
    assert killed.wait(60) == 128 + signal.SIGKILL


def test_a_fork_that_ended_before_its_client_saw_it_is_not_run_again(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = str(tmp_path / "forks.sock")
    with closing(socket.socket(socket.AF_UNIX)) as listener:  # a server that is quicker than any client
        listener.bind(path)
        listener.listen()
        client = subprocess.Popen(client_command("program"), env=os.environ | {VARIABLE: path}, cwd=tmp_path)
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as request:
            connection.recv(1)
            socket.recv_fds(connection, 1, 4)
            request.read()
            connection.sendall(WORD.pack(ended.pid) + WORD.pack(5))
            assert client.wait(60) == 5


def test_a_fork_dies_with_its_client(forks: Forks, wait_until: WaitUntil) -> None:
    client, fork = forks.waiting()
    client.kill()
    wait_until(lambda: not runs(fork), what="the fork has died")


def test_a_program_starts_by_itself_where_no_server_answers(forks: Forks) -> None:
    forks.server.kill()
    forks.server.wait()
    client = forks.run("import os; print(os.getpid(), flush=True); os._exit(5)")
    printed, _ = client.communicate(timeout=60)
    assert (int(printed), client.returncode) == (client.pid, 5)


def test_a_module_that_a_program_needs_is_imported_once_for_all_forks(forks: Forks) -> None:
    (forks.folder / "library.py").write_text("import os\nimported_by = os.getpid()\n")
    program = """
        from workers.process.fork_client import require_imports
        require_imports(["library"])
        import library
        print(library.imported_by)
        """
    for _ in range(2):
        printed, _ = forks.run(program).communicate(timeout=60)
        assert int(printed) == forks.server.pid


def test_a_program_that_must_not_be_a_fork_starts_by_itself(forks: Forks) -> None:
    client = forks.run(
        """
        import os
        from workers.process.fork_client import require_own_process
        require_own_process()
        print(os.getpid())
        """
    )
    printed, _ = client.communicate(timeout=60)
    assert int(printed) == client.pid


def test_a_supervised_program_runs_again_with_what_it_has_found_and_was_told(forks: Forks) -> None:
    client = forks.run(
        """
        import os, signal
        from workers.process import supervised_fork
        def main():
            above = supervised_fork.above()
            found = above.found(str)
            above.keep("version 3")
            above.tell_ready(5)
            if not found:
                above.marker.leave()
                os.kill(os.getpid(), signal.SIGKILL)
            print(found, above.marker.is_leaving, above.folder, sep="|", flush=True)
            signal.pause()
        supervised_fork.supervise(main)
        """
    )
    assert client.stdout
    found, is_leaving, folder = client.stdout.readline().strip().split("|")
    assert (found, is_leaving, Path(folder).is_dir()) == ("version 3", "True", True)
    client.terminate()
    assert client.wait(60) == 128 + signal.SIGTERM
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("last_words", "status"), [("fork_client.leave()", 0), ("sys.exit(0)", 70), ("sys.exit(7)", 7)]
)
def test_a_supervised_program_that_never_was_ready_ends_its_client(
    forks: Forks, last_words: str, status: int
) -> None:
    client = forks.run(
        f"""
        import sys
        from workers.process import fork_client, supervised_fork
        supervised_fork.supervise(lambda: {last_words})
        """
    )
    assert client.wait(60) == status
