"""Large bodies are read in another process, and answered as small ones are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.server_errors import (
    BodyNotArrayError,
    BodyNotJsonError,
    ModelyardError,
    QueueFullError,
    UnavailableError,
)
from controller.input.job_samples import Samples, read_samples
from controller.input.large_bodies import LARGE_BODY_BYTES, LargeBodies
from controller.pool_snapshot import build_snapshot
from controller.routing import routes
from controller.selector import Selector
from tests.controller.conftest import HandWorker, Serve, until
from tests.e2e.fuzz import rss_mib
from tests.pool_samples import record

pytestmark = pytest.mark.process
HandWorkers = Callable[..., HandWorker]
N = LARGE_BODY_BYTES // 8
ROOM: dict[str, Any] = {"max_samples": 65535, "batch_max_samples": 65535}
ROUTES = routes(build_snapshot([record()], {record().queue: 1}, {}), Selector())
PAIRS = b'{"data": [' + b", ".join([b"[1, 2]"] * N) + b"]}"
BODIES = {
    "json": (b"application/json", PAIRS),
    "octets": (b"application/octet-stream", np.arange(2 * N, dtype="<f4").tobytes()),
    "not json": (b"application/json", PAIRS[:-1]),
    "wrong key": (b"application/json", PAIRS.replace(b"data", b"date")),
    "no number": (b"application/json", PAIRS.replace(b"2]]", b"null]]")),
    "too large a number": (b"application/json", PAIRS.replace(b"2]]", b"1e39]]")),
    "ragged": (b"application/json", PAIRS.replace(b", 2]]", b"]]")),
    "too many samples": (b"application/json", b'{"data": [' + b", ".join([b"[1, 2]"] * 65536) + b"]}"),
}


@pytest.fixture
async def large_bodies() -> AsyncIterator[LargeBodies]:
    bodies = LargeBodies()
    yield bodies
    bodies.close()


def readers() -> list[int]:
    """Processes of this one that read large bodies."""
    tasks = Path("/proc/self/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"large_bodies" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def read(bodies: LargeBodies, content_type: bytes, body: bytes) -> Any:
    """Samples, or the class and text of the error."""
    try:
        return await bodies.read([body], content_type, ROUTES, 65535)
    except ModelyardError as error:
        return type(error), error.detail


def read_here(content_type: bytes, body: bytes) -> Any:
    try:
        return read_samples(content_type, body, ROUTES, 65535)
    except ModelyardError as error:
        return type(error), error.detail


async def test_large_bodies_are_read_as_they_would_be_here_several_at_once(large_bodies: LargeBodies) -> None:
    found = await asyncio.gather(*(read(large_bodies, *each) for each in BODIES.values()))
    assert dict(zip(BODIES, found, strict=True)) == {name: read_here(*each) for name, each in BODIES.items()}
    assert sum(isinstance(each, Samples) for each in found) == 2


async def test_more_large_bodies_than_there_is_room_for_are_refused_and_one_alone_never() -> None:
    bodies = LargeBodies(limit_bytes=2 * len(PAIRS))
    try:
        found = await asyncio.gather(*(read(bodies, b"application/json", PAIRS) for _ in range(4)))
        assert sum(isinstance(each, Samples) for each in found) == 2
        assert sum(each[0] is QueueFullError for each in found if isinstance(each, tuple)) == 2
        longer = PAIRS + 2 * len(PAIRS) * b" "
        assert isinstance(await read(bodies, b"application/json", longer), Samples)
    finally:
        bodies.close()


async def test_a_caller_who_gives_up_takes_no_room_for_long() -> None:
    bodies = LargeBodies(limit_bytes=len(PAIRS) + 8, n_processes=1)
    try:
        post = asyncio.create_task(read(bodies, b"application/json", PAIRS))
        await until(readers, "a process reads it")
        post.cancel()
        assert (await read(bodies, b"application/json", PAIRS))[0] is QueueFullError
        assert (await read(bodies, b"application/json", b" " * 8))[
            0
        ] is BodyNotJsonError  # after the running one
        assert isinstance(await read(bodies, b"application/json", PAIRS), Samples)
    finally:
        bodies.close()


async def test_large_bodies_leave_no_memory_behind_and_a_killed_reader_is_replaced(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve(**ROOM)
    flat = b'{"data": [' + (4 * 2**20 - 16) * b"0," + b"0]}"  # eight MiB, and no whole sample
    before_mib = rss_mib(os.getpid())
    for _ in range(3):
        answer = await served.post(flat)
        assert (answer.status_code, answer.json()["code"]) == (422, "input_wrong_shape")
    assert rss_mib(os.getpid()) < before_mib + 40
    [reader] = readers()
    os.kill(reader, signal.SIGKILL)
    assert (await served.post(PAIRS)).status_code == 202
    worker.finish(await worker.claimed())
    [another] = readers()
    assert another != reader


async def test_a_controller_that_stops_leaves_no_reader_behind(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(**ROOM)
    refused = await served.post(BODIES["no number"][1])
    assert (refused.status_code, refused.json()["code"]) == (422, "input_not_numeric")
    assert len(readers()) == 1
    served.services.large_bodies.close()
    assert readers() == []


async def test_a_body_that_ends_its_reader_is_refused_for_good_only_where_a_decoder_read_it(
    large_bodies: LargeBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert (await read(large_bodies, b"application/json", PAIRS))[0] is UnavailableError
    assert (await read(large_bodies, b"image/png", b"\x89PNG"))[0] is BodyNotArrayError
