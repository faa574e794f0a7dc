"""`modelyard doctor` beside a pool of real processes under load: healthy, again and again; and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.redis import keys
from modelyard import Client
from tests.e2e.conftest import Digits, Pool

SENDERS = 4
PAUSE_S = 0.05  # between two posts of a sender, so that the pool and the doctor have CPU left
LOOKS = 2


def doctor(url: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report."""
    command = [sys.executable, "-m", "cli", "doctor", "--json", "--redis-url", url, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}


@contextmanager
def load(url: str, digits: Digits) -> Iterator[Callable[[], int]]:
    """Senders that wait for each outcome, cancel some jobs and leave others unread; answers how many they sent."""
    stop = threading.Event()
    sent = [0] * SENDERS

    def send(sender: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            while not stop.wait(PAUSE_S):
                wait = (5, 0, 0.001)[sent[sender] % 3]
                job = http.post(f"/predict?wait={wait}&deadline=20", json=digits.body(sender)).json()
                if sent[sender] % 7 == 1:
                    http.delete(job["result_url"])
                sent[sender] += 1

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(sent)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_busy_pool_is_healthy_each_time_that_the_doctor_looks(
    served: tuple[Pool, str, Client], digits: Digits
) -> None:
    pool, url, _ = served
    with load(url, digits) as sent:
        before = sent()
        for _ in range(LOOKS):
            status, report = doctor(pool.redis_url, pool.folder)
            assert (status, report.get("findings")) == (0, []), report
        assert sent() - before > 10 * LOOKS  # it was busy
        assert report["counts"]["keys modelyard:batch:"] > 10


def test_what_the_pool_does_not_mend_by_itself_is_reported_and_mended_while_it_works(
    served: tuple[Pool, str, Client], digits: Digits
) -> None:
    pool, url, _ = served
    with redis.Redis.from_url(pool.redis_url) as client, load(url, digits):
        queue = next(iter(client.hkeys(keys.NUMBERS))).decode()
        client.hincrby(keys.BACKLOG, queue, 5)
        for status, options in ((1, ["--mend"]), (0, [])):
            found, report = doctor(pool.redis_url, pool.folder, "--patience", "2", *options)
            assert found == status, report
            kinds = [(each["kind"], each["mended"]) for each in report["findings"]]
            assert kinds == [("backlog_wrong", True)] * status


@pytest.mark.parametrize("options", [[], ["--mend"]])
def test_without_redis_the_exit_status_is_2(tmp_path: Path, options: list[str]) -> None:
    status, report = doctor("unix:///nowhere/redis.sock", tmp_path, *options)
    assert status == 2
    assert "Redis does not answer" in report["error"]
