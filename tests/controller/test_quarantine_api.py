"""`/quarantine` over HTTP: listed, sent again once, and the new job names the old one."""

from __future__ import annotations

from collections.abc import Callable

from app.ledger.wire import JobOutcome
from tests.controller.conftest import HandWorker, Serve, Served
from tests.pool_samples import outcome

HandWorkers = Callable[..., HandWorker]


async def quarantined(served: Served, worker: HandWorker) -> str:
    """Id of a job whose worker says that it is quarantined."""
    job_id = str((await served.post()).json()["id"])
    batch = await worker.claimed()
    failed = outcome(jobs=[JobOutcome("failed", error_code="job_quarantined", error_detail="…")])
    assert worker.finish(batch, failed, {0: batch.data})
    return job_id


async def test_a_quarantined_job_is_listed_and_sent_again_once(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    assert (await served.http.get("/quarantine")).json() == {"jobs": []}
    assert (await served.http.get("/findings")).json() == {"findings": []}
    old = await quarantined(served, worker)
    found = (await served.http.get("/findings")).json()["findings"]
    assert [(each["kind"], each["detail"].partition(";")[0]) for each in found] == [
        ("quarantined", "1 job has crashed its workers")
    ]
    first = await served.http.post(f"/quarantine/{old}/resend?deadline=30")
    second = await served.http.post(f"/quarantine/{old}/resend")
    assert (first.status_code, second.status_code) == (202, 202)
    new = first.json()["id"]
    assert (second.json()["id"], first.json()["resent_from"], first.json()["status"]) == (new, old, "queued")
    assert first.headers["location"] == f"/results/{new}"
    batch = await worker.claimed()
    assert batch.batch_id == new.split(".")[0]
    assert worker.next_batch_id() is None
    worker.finish(batch)
    done = (await served.http.get(f"/results/{new}")).json()
    assert (done["status"], done["resent_from"]) == ("succeeded", old)
    assert (await served.http.get(f"/results/{old}")).json()["error"]["code"] == "job_quarantined"
    listed = (await served.http.get("/quarantine?limit=5")).json()["jobs"]
    assert [(job["job_id"], job["resent_as"]) for job in listed] == [(old, new)]


async def test_resending_says_why_it_cannot(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve()
    healthy = (await served.post()).json()["id"]
    worker.finish(await worker.claimed())
    old = await quarantined(served, worker)
    for path, status, code in (
        (f"{healthy}/resend", 409, "job_not_quarantined"),
        ("nobody/resend", 404, "job_unknown"),
        (f"{old}/resend?deadline=0", 422, "parameter_invalid"),
        (f"{old}/resend?again=perhaps", 422, "parameter_invalid"),
    ):
        answer = await served.http.post(f"/quarantine/{path}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await served.http.get("/quarantine?limit=0")).status_code == 422
