"""What a process that was killed noted last, read by the one that is forked after it."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable

from workers.process.in_flight_marker import MOST_DEATHS, SIZE_BYTES, InFlight, InFlightMarker


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


def test_deaths_in_a_row_are_those_with_a_batch_since_a_pass_ended_well() -> None:
    words = InFlightMarker()

    def run_two_batches() -> None:
        words.batch_started()
        words.passed()
        words.batch_ended()
        words.batch_started()

    for _ in range(3):
        die_after(words, words.batch_started)
    assert words.n_deaths == 3
    die_after(words, lambda: None)  # it was idle
    assert words.n_deaths == 3
    die_after(words, run_two_batches)
    assert words.n_deaths == 1
    for _ in range(300):
        words.batch_started()
        words.end()
    assert words.n_deaths == MOST_DEATHS


def test_where_nothing_was_noted_there_is_nothing_to_read() -> None:
    assert InFlightMarker().read() is None


def test_a_note_that_death_cut_short_is_no_note() -> None:
    memory = mmap.mmap(-1, SIZE_BYTES)
    words = InFlightMarker(memory)
    words.serves("dead")
    memory[5:10] = bytes(5)
    assert words.read() is None
