"""A thread that reads the registry again and again while a pool runs, so that the pool can follow it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from app.registry_database import sqlite_path, written_at_ns
from app.server_errors import ModelyardError
from training.registry_reader import Question, Reading, RegistryReader

LOOK_S = 2.0  # between two looks at the registry
REST_S = 60.0  # a database that did not change for so long needs no process that reads it


@dataclass(frozen=True)
class Look:
    """The state of the registry as far as it is known.

    Attributes:
        reading: The last answer to the question; None if there is none yet.
        problem: Why the registry cannot be read now; empty if it can.
    """

    question: Question
    reading: Reading | None
    problem: str = ""


class RegistryWatch:
    """The thread. A SQLite database is read only after it has changed.

    Args:
        tracking_uri: The registry.
        question: What to read first.
        reading: The answer to it that is known already.
    """

    def __init__(
        self, tracking_uri: str, question: Question, reading: Reading, reader: RegistryReader
    ) -> None:
        self.look = Look(question, reading)
        self._database = sqlite_path(tracking_uri)
        self._reader = reader
        self._question = question
        self._changed_at: object = None
        self._read_from = self._identity()
        self._idle_s = 0.0
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask(self, question: Question) -> None:
        """Read this from now on."""
        if question != self._question:
            self._question = question
            self._wake.set()

    def look_now(self) -> None:
        """Read the registry without waiting for the next look."""
        self._wake.set()

    def close(self) -> None:
        """Stop; a question that is under way fails."""
        self._closing.set()
        self._wake.set()
        self._reader.close()

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._look()
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _look(self) -> None:
        question, changed_at = self._question, self._stamp()
        is_known = question == self.look.question and not self.look.problem
        if changed_at is not None and changed_at == self._changed_at and is_known:
            self._idle_s += LOOK_S
            if self._idle_s > REST_S:
                self._reader.close()
            return
        self._idle_s = 0.0
        identity = self._identity()
        if identity != self._read_from:  # the process still has the file open that was replaced
            self._reader.close()
            self._read_from = identity
        if self._database and not identity:
            problem = f"the registry's database {self._database} is not there"
            self.look = Look(self.look.question, self.look.reading, problem)
            return
        try:
            self.look = Look(question, self._reader.read(question))
            self._changed_at = changed_at
        except (ModelyardError, OSError, ValueError) as error:
            detail = error.detail if isinstance(error, ModelyardError) else str(error)
            self.look = Look(self.look.question, self.look.reading, detail)

    def _identity(self) -> int:
        """Tells a database file from another one of the same name; 0 if there is none."""
        try:
            return self._database.stat().st_ino if self._database else 0
        except OSError:
            return 0

    def _stamp(self) -> object:
        """Changes with the database; None for other registries."""
        return written_at_ns(self._database) if self._database else None
