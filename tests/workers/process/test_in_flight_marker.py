"""What a process that was killed noted last, read by the one that is forked after it."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable

from workers.process.in_flight_marker import SIZE_BYTES, InFlight, InFlightMarker


def die_after(words: InFlightMarker, notes: Callable[[], None]) -> None:
    """Fork a process that makes these notes and is killed at once."""
    pid = os.fork()
    if not pid:
        notes()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    words.end()


def test_the_next_process_reads_which_job_ran_alone_in_the_one_that_was_killed() -> None:
    words, before_s = InFlightMarker(), time.monotonic()

    def hang_in_a_job() -> None:
        words.serves("dead")
        words.runs_alone("batch", 7)

    die_after(words, hang_in_a_job)
    noted = words.read()
    assert noted is not None
    assert (noted.worker_id, noted.batch_id, noted.index) == ("dead", "batch", 7)
    assert before_s <= noted.since_s <= words.ended_at_s <= time.monotonic()


def test_a_job_that_ended_is_not_named() -> None:
    words = InFlightMarker()

    def run_a_job() -> None:
        words.serves("dead")
        words.runs_alone("a-batch-with-a-long-name", 7)
        words.ran()

    die_after(words, run_a_job)
    assert words.read() == InFlight("dead")


def test_where_nothing_was_noted_there_is_nothing_to_read() -> None:
    assert InFlightMarker().read() is None


def test_a_note_that_death_cut_short_is_no_note() -> None:
    memory = mmap.mmap(-1, SIZE_BYTES)
    words = InFlightMarker(memory)
    words.serves("dead")
    memory[5:10] = bytes(5)
    assert words.read() is None
