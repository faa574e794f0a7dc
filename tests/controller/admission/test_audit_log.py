"""The audit log, of a controller behind a real socket: who did what to a job, and who was refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api_keys import new_key
from app.ledger.wire import JobOutcome
from app.server_errors import ConfigurationError
from controller.admission.audit_log import REFUSALS_PER_S
from controller.http.server import make_server
from controller.main import create_app
from tests.conftest import RedisServer
from tests.controller.conftest import HandWorker, Serve, Served, settings_for, until
from tests.pool_samples import outcome

HandWorkers = Callable[..., HandWorker]
Lines = Callable[[], list[dict[str, Any]]]
POST: dict[str, Any] = {"url": "/predict", "json": {"data": [1, 2]}}
ALICE, OPERATOR = new_key("alice", "predict"), new_key("root", "operate")
AS_ALICE, AS_OPERATOR = ({"authorization": f"Bearer {key}"} for key, _ in (ALICE, OPERATOR))
STRANGE = {"authorization": "Bearer modelyard_SECRET"}


@pytest.fixture
async def served(serve: Serve, tmp_path: Path, free_port: Callable[[], int]) -> Served:
    return await serve(
        api_keys=f"{ALICE[1].line()}, {OPERATOR[1].line()}",
        audit_log=tmp_path / "audit",
        max_wait_s=1,
        host="127.0.0.1",
        port=free_port(),
    )


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """What the log holds so far. The times differ each time; that they are there is checked."""

    def read() -> list[dict[str, Any]]:
        text = (tmp_path / "audit").read_text()
        assert "SECRET" not in text
        assert not any(key in text or made.digest.hex() in text for key, made in (ALICE, OPERATOR))
        found = [json.loads(line) for line in text.splitlines()]
        assert all(line.pop("time").endswith("+00:00") for line in found)
        return found

    return read


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    server = make_server(served.app, served.services.settings, access_log=False)
    server.config.lifespan = "off"  # `serve` has opened it
    serving = asyncio.create_task(server.serve(server.listen()))
    await until(lambda: server.started, "the server listens")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.config.port}") as client:
        yield client
    server.should_exit = True
    await serving


async def test_cancels_and_resends_name_their_caller_and_what_came_of_them(
    http: httpx.AsyncClient, hand_worker: HandWorkers, lines: Lines, served: Served
) -> None:
    worker = hand_worker()
    await served.services.watcher.refresh()
    url = (await http.post(**POST, headers=AS_ALICE)).json()["result_url"]
    assert (await http.delete(url, headers=AS_ALICE)).status_code == 200
    assert (await http.delete("/results/unknown%0A", headers=AS_ALICE)).status_code == 404
    worker.finish(await worker.claimed())
    killer = (await http.post(**POST, headers=AS_ALICE)).json()["id"]
    quarantined = JobOutcome("failed", error_code="job_quarantined", error_detail="it kills")
    worker.finish(await worker.claimed(), outcome(jobs=[quarantined]), {0: bytes(8)})
    resent = await http.post(f"/quarantine/{killer}/resend", headers=AS_OPERATOR)
    assert resent.status_code == 202
    assert (await http.post(f"/quarantine/{killer}/resend", headers=AS_ALICE)).status_code == 403
    assert (await http.get(f"/results/{ALICE[0]}")).status_code == 401
    *found, misplaced = lines()
    assert misplaced["path"] == "/results/***"
    job_id = url.removeprefix("/results/")
    here = {"address": "127.0.0.1"}
    by_alice = {"key": "alice", **here}
    assert found == [
        {"event": "cancel", "outcome": "cancelled", "job_id": job_id, **by_alice},
        {
            "event": "cancel",
            "outcome": "job_unknown",
            "job_id": "unknown\n",
            "reason": "no job of this API key has this id, or the retention time of its outcome has ended",
            **by_alice,
        },
        {
            "event": "resend",
            "outcome": "resent",
            "job_id": killer,
            "key": "root",
            "resent_as": resent.json()["id"],
            **here,
        },
        {
            "event": "request",
            "outcome": "forbidden",
            "reason": "this request requires an API key with the role `operate`",
            "method": "POST",
            "path": f"/quarantine/{killer}/resend",
            **by_alice,
        },
    ]


@pytest.mark.parametrize(
    "request_",
    [{"method": "POST", **POST}, {"method": "GET", "url": "/workers"}],
    ids=["/predict", "/workers"],
)
async def test_refused_keys_are_noted_with_their_reason_and_cannot_fill_the_log(
    http: httpx.AsyncClient, lines: Lines, request_: dict[str, Any]
) -> None:
    assert (await http.request(**request_)).status_code == 401
    n_refused = 10 * REFUSALS_PER_S
    refused = await asyncio.gather(*(http.request(**request_, headers=STRANGE) for _ in range(n_refused)))
    assert {answer.status_code for answer in refused} == {401}
    missing = {
        "event": "request",
        "outcome": "unauthenticated",
        "reason": "the API key is missing",
        "method": request_["method"],
        "path": request_["url"],
        "address": "127.0.0.1",
    }
    invalid = {**missing, "reason": "the API key is invalid"}
    assert lines()[0] == missing

    def n_noted() -> int:
        return sum(line.get("more", line == invalid) for line in lines()[1:])

    await until(lambda: n_noted() == n_refused, "every refusal is noted or counted")
    assert len(lines()) < n_refused


def test_an_audit_log_that_cannot_be_written_is_told_before_anything_starts(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with pytest.raises(ConfigurationError, match=r"MODELYARD_AUDIT_LOG=.*cannot be written"):
        create_app(settings_for(redis_server.url, audit_log=tmp_path / "none" / "audit"))
