"""The alias follower: serves the version that an alias names, and the next one when the alias has moved.

It is the outermost process of `modelyard worker` with an alias or `latest`, and starts ordinary workers. Its serving
worker reads the alias again and again. When the alias names another version, the follower starts a second worker for
that version. Once the second one is ready, it tells the first one to drain. A second worker that cannot serve leaves
the first one in place. Only the standard library is imported, because this process only waits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from workers.process import follower_files, fork_client, health, temporary_folder
from workers.process.follower_files import Said, Told
from workers.process.prefork_supervisor import LEAVE_ROUTING, signal_at_parents_death

if TYPE_CHECKING:
    from app.settings import WorkerSettings

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, LEAVE_ROUTING)
POLL_S = 0.25
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0  # before a version that failed is tried again
AWAY_PAUSE_S = 10.0  # the same if the registry or Redis did not answer
READY_FILE = "MODELYARD_READY_FILE"


def is_needed(settings: WorkerSettings) -> bool:
    """Whether the version may move: it is an alias or `latest`, and no follower has started this process."""
    return not settings.model_version.isdigit() and not follower_files.own_folder()


def become(settings: WorkerSettings) -> NoReturn:
    """Replace this process by a follower, which is smaller."""
    chosen = {
        "MODEL_NAME": settings.model_name,
        "MODEL_VERSION": settings.model_version,
        "WORKER": str(settings.worker_number or ""),
        "REDIS_URL": settings.redis_url,
    }
    # -P: a folder named workers may stand here
    command = [sys.executable, "-P", "-m", "workers.process.alias_follower"]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until the follower has handlers
    os.execve(sys.executable, command, os.environ | chosen)  # noqa: S606  (this Python)


class _Worker:
    """A worker, and the folder through which the follower talks to it."""

    def __init__(self, folder: Path, version: str, told: Told) -> None:
        self.folder, self.wanted, self.told = folder, version, told
        folder.mkdir()
        follower_files.write(folder, told)
        own = {
            "MODEL_VERSION": version,
            READY_FILE: str(folder / follower_files.READY),
            follower_files.VARIABLE: str(folder),
        }
        self.process = subprocess.Popen(  # noqa: S603  (this Python)
            fork_client.command("workers"),
            env=os.environ | own,
            start_new_session=True,  # Ctrl-C reaches every process of a group; this process forwards it
            preexec_fn=signal_at_parents_death(signal.SIGTERM),
        )

    @property
    def said(self) -> Said:
        return follower_files.read(self.folder, Said) or Said()

    @property
    def ready_until_s(self) -> float:
        """When the worker's record expires (`time.time()`); 0 if the worker is not ready."""
        try:
            return (self.folder / follower_files.READY).stat().st_mtime
        except OSError:
            return 0.0

    def tell(self, **words: Any) -> None:
        """Replace the message of this worker."""
        told = Told(self.told.alias, self.told.follower_pid, **words)
        if told != self.told:
            self.told = told
            follower_files.write(self.folder, told)


class Follower:
    """Follows one alias until it is told to stop, or until its serving worker ends.

    Args:
        alias: The alias, or `latest`.
        ready_file: File for the container's health check, valid while a worker is ready.
    """

    def __init__(self, alias: str, ready_file: str) -> None:
        self._alias = alias
        self._ready_file = ready_file
        self._folder = Path(temporary_folder.make("modelyard-follower-"))
        self._received: list[int] = []
        self._workers: list[_Worker] = []
        self._n_started = 0
        self._candidate: _Worker | None = None
        self._failed_version = ""
        self._retry_at_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._status: int | None = None
        self._is_stopping = False

    def run(self) -> int:
        """Serve; returns the status with which the serving worker ended."""
        for number in FORWARDED:
            signal.signal(number, lambda received, _: self._received.append(received))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        try:
            self._serving = self._start(self._alias)
            while self._workers:
                with suppress(OSError):  # a full disk must not end the workers; the next look tries again
                    self._look()
                time.sleep(POLL_S)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._ready_file:
                health.tell_not_ready(self._ready_file)
        return self._status or 0

    def _look(self) -> None:
        while self._received:
            self._stop_all(self._received.pop(0))
        self._collect()
        if not self._is_stopping:
            self._follow()
        self._tell_health()

    def _start(self, version: str) -> _Worker:
        self._n_started += 1
        told = Told(self._alias, os.getpid())
        worker = _Worker(self._folder / str(self._n_started), version, told)
        self._workers.append(worker)
        return worker

    def _stop_all(self, number: int) -> None:
        """Forward a signal to all workers; from now on no other version is started."""
        self._is_stopping = True
        for worker in self._workers:
            worker.process.send_signal(number)

    def _collect(self) -> None:
        """Note the workers that have ended."""
        for worker in [*self._workers]:
            status = worker.process.poll()
            if status is None:
                continue
            self._workers.remove(worker)
            if worker is self._serving:
                self._status = status if status >= 0 else 128 - status
                if not self._is_stopping:
                    self._stop_all(signal.SIGTERM)
            elif worker is self._candidate and not self._is_stopping:
                self._candidate = None
                said = worker.said
                why = said.error or f"its worker ended with status {status} before it was ready"
                self._note_failure(worker.wanted, why, is_away=said.is_away)
            shutil.rmtree(worker.folder, ignore_errors=True)

    def _note_failure(self, version: str, why: str, *, is_away: bool = False) -> None:
        pause_s = AWAY_PAUSE_S if is_away else self._pause_s
        if not is_away:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._failed_version, self._retry_at_s = version, time.monotonic() + pause_s
        self._serving.tell(failed_version=int(version), failure=f"{why} (tried again in {pause_s:g} s)")

    def _follow(self) -> None:
        said = self._serving.said
        if said.named is None:
            return
        named = str(said.named or said.version)
        if self._candidate and self._candidate.wanted != named:
            self._candidate.process.send_signal(signal.SIGTERM)  # the alias has moved again
            self._candidate = None
        if named == str(said.version):
            gone = f"the registry has no alias {self._alias} any more"
            self._serving.tell(warning="" if said.named else gone)
            self._failed_version = ""
        elif not self._candidate:
            self._try_version(named)
        elif self._candidate.ready_until_s > time.time():
            self._switch(self._candidate)

    def _try_version(self, version: str) -> None:
        if version != self._failed_version:
            self._pause_s = FIRST_PAUSE_S
        elif time.monotonic() < self._retry_at_s:
            return
        try:
            self._candidate = self._start(version)
        except OSError as error:
            self._note_failure(version, f"no process can be started: {error}")

    def _switch(self, successor: _Worker) -> None:
        self._serving.tell(successor=int(successor.wanted))
        self._serving, self._candidate, self._failed_version = successor, None, ""

    def _tell_health(self) -> None:
        if not self._ready_file:
            return
        until_s = max((worker.ready_until_s for worker in self._workers), default=0.0)
        if until_s:
            health.tell_ready(self._ready_file, until_s - time.time())
        else:
            health.tell_not_ready(self._ready_file)


def main() -> None:
    """Follow the alias of the environment variables."""
    ready_file = os.environ.get(READY_FILE, "")
    try:
        if ready_file:
            health.tell_ready(ready_file, 0)
    except OSError as error:
        sys.exit(f"modelyard worker: {READY_FILE}={ready_file} cannot be written: {error}")
    sys.exit(Follower(os.environ["MODEL_VERSION"], ready_file).run())


if __name__ == "__main__":
    main()
