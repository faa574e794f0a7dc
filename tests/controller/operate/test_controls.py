"""Versions that operators take out of service: what routing then chooses, what callers are told, and the log of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from app.redis import keys
from tests.controller.conftest import HandWorker, Serve, Served
from tests.pool_samples import MODEL

HandWorkers = Callable[..., HandWorker]
BEST, OTHER = 2, 1


@pytest.fixture
async def served(serve: Serve, hand_worker: HandWorkers) -> Served:
    """Two versions of one model; version 2 is the better one."""
    hand_worker(OTHER, val_accuracy=0.8)
    hand_worker(BEST, val_accuracy=0.9)
    return await serve(heartbeat_s=5.0)


async def chosen(served: Served, query: str = "") -> int:
    """The version of an accepted job."""
    answer = await served.post(query=query)
    assert answer.status_code == 202, answer.text
    return int(answer.json()["model_version"])


async def control(served: Served, action: str, version: int, reason: str = "") -> None:
    answer = await served.http.post(f"/models/{MODEL}/versions/{version}/{action}", params={"reason": reason})
    assert answer.status_code == 200, answer.text


async def row(served: Served, version: int) -> dict[str, object]:
    rows = (await served.http.get("/workers")).json()["workers"]
    return next(each for each in rows if each["model_version"] == version)


async def test_a_disabled_version_is_reached_by_its_name_alone_until_it_is_enabled(served: Served) -> None:
    assert await chosen(served) == BEST
    await control(served, "disable", BEST, "drifts")
    assert await chosen(served) == OTHER
    assert await chosen(served, f"?worker={BEST}") == BEST
    assert await chosen(served, f"?version={BEST}") == BEST
    shown = await row(served, BEST)
    assert (shown["excluded"], shown["excluded_why"], shown["chosen"]) == (
        "disabled",
        "disabled: drifts",
        False,
    )
    await control(served, "enable", BEST)
    assert await chosen(served) == BEST
    listed = (await served.http.get("/decisions")).json()["decisions"]
    assert [(each["kind"], each["model_version"], each["reason"]) for each in listed] == [
        ("enabled", BEST, ""),
        ("disabled", BEST, "drifts"),
    ]


async def test_a_retired_version_takes_no_job_by_any_way_and_keeps_those_that_it_has(served: Served) -> None:
    job = (await served.post(query=f"?version={BEST}")).json()["id"]
    answer = await served.http.post(f"/models/{MODEL}/versions/{BEST}/retire")
    assert (answer.json()["state"], answer.json()["open_jobs"]) == ("retired", 1)
    assert await chosen(served) == OTHER
    for query in (f"?worker={BEST}", f"?version={BEST}"):
        refused = await served.post(query=query)
        assert (refused.status_code, refused.json()["code"]) == (410, "model_not_served")
    assert (await served.http.get(f"/results/{job}")).json()["status"] == "queued"
    await control(served, "retire", OTHER)
    refused = await served.post()
    assert (refused.status_code, refused.json()["code"]) == (410, "model_not_served")


async def test_a_pinned_version_answers_alone_until_its_model_is_unpinned(served: Served) -> None:
    await control(served, "pin", OTHER, "audit")
    assert await chosen(served) == OTHER
    assert (await row(served, BEST))["excluded_why"] == f"version {OTHER} is pinned: audit"
    assert await chosen(served, f"?version={BEST}") == BEST
    assert (await served.http.post(f"/models/{MODEL}/unpin")).json()["state"] == "unpinned"
    assert await chosen(served) == BEST


async def test_a_model_without_a_version_in_service_answers_why(served: Served) -> None:
    for version in (BEST, OTHER):
        await control(served, "disable", version, "under repair")
    refused = await served.post()
    assert (refused.status_code, refused.json()["code"]) == (503, "no_candidate")
    assert "version 2 is out of service (disabled: under repair)" in refused.json()["detail"]


async def test_a_version_is_forgotten_once_it_has_no_worker_and_no_job(
    served: Served, client: redis.Redis, hand_worker: HandWorkers
) -> None:
    gone = hand_worker(7)
    await served.services.watcher.refresh()
    path = f"/models/{MODEL}/versions/7"
    refused = await served.http.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "version_in_use")
    assert "live workers 1, open jobs 0" in refused.json()["detail"]
    gone.stop()
    assert (await served.http.delete(path)).json()["state"] == "forgotten"
    assert client.hget(keys.NUMBERS, gone.record.queue) is None
    assert (await served.http.delete(path)).json()["code"] == "model_unknown"


async def test_a_forgotten_version_stays_retired_until_it_is_enabled(
    served: Served, hand_worker: HandWorkers
) -> None:
    gone = hand_worker(7, val_accuracy=1.0)
    await served.services.watcher.refresh()
    await control(served, "retire", 7)
    gone.stop()
    assert (await served.http.delete(f"/models/{MODEL}/versions/7")).json()["state"] == "forgotten"
    assert (await served.post(query="?version=7")).json()["code"] == "model_unknown"
    gone.start()
    await served.services.watcher.refresh()
    assert await chosen(served) == BEST
    assert (await served.post(query="?version=7")).json()["code"] == "model_not_served"
    await control(served, "enable", 7)
    assert await chosen(served) == 7


async def test_a_forgotten_retired_version_is_enabled_before_it_has_a_worker_again(
    served: Served, hand_worker: HandWorkers
) -> None:
    hand_worker(7).stop()
    await control(served, "retire", 7)
    assert (await served.http.delete(f"/models/{MODEL}/versions/7")).json()["state"] == "forgotten"
    await control(served, "enable", 7)
    refused = await served.http.post(f"/models/{MODEL}/versions/7/enable")
    assert refused.json()["code"] == "model_unknown"


@pytest.mark.parametrize("path", [f"models/{MODEL}/versions/99/retire", "models/Nobody/unpin"])
async def test_a_version_that_was_never_served_is_refused_with_what_is_known(
    served: Served, path: str
) -> None:
    refused = await served.http.post(f"/{path}")
    assert (refused.status_code, refused.json()["code"]) == (404, "model_unknown")
    assert "known" in refused.json()["detail"]


async def test_scale_tells_the_load_of_every_version_that_was_ever_served(served: Served) -> None:
    for _ in range(3):
        await served.post(query=f"?version={BEST}")
    await served.services.watcher.refresh()
    document = (await served.http.get(f"/scale/{MODEL}/{BEST}")).json()
    assert (document["jobs"], document["live_replicas"], document["running"]) == (3, 1, 0)
    assert document["wanted_replicas"] >= 1
    idle = f"/scale/{MODEL}/{OTHER}"
    assert (await served.http.get(idle)).json()["wanted_replicas"] == 1
    await control(served, "retire", OTHER)
    assert (await served.http.get(idle)).json()["wanted_replicas"] == 0
    assert (await served.http.get(f"/scale/{MODEL}/99")).status_code == 404


async def test_scale_tells_that_a_listed_version_wants_its_first_worker(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.toml"
    entry = f'[[serve]]\nmodel = "{MODEL}"\nversions = [97, "champion"]\n'
    file.write_text(f'{entry}[endpoints.digits]\nversions = ["{MODEL}/99"]\n')
    served = await serve(pool_file=file)
    for version in (97, 99):
        document = (await served.http.get(f"/scale/{MODEL}/{version}")).json()
        assert (document["live_replicas"], document["jobs"], document["wanted_replicas"]) == (0, 0, 1)
    assert (await served.http.get(f"/scale/{MODEL}/98")).status_code == 404


async def test_a_version_is_scaled_by_hand_only_where_its_workers_run_under_up(
    served: Served, hand_worker: HandWorkers
) -> None:
    path = f"/models/{MODEL}/versions/{BEST}/scale"
    refused = await served.http.post(path, params={"replicas": 3})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_scalable")
    assert "runs under `modelyard up`" in refused.json()["detail"]
    hand_worker(BEST, val_accuracy=0.9, managed_by="up")
    await served.services.watcher.refresh()
    assert (await served.http.post(path, params={"replicas": 3})).json()["state"] == "scaled"
    assert (await row(served, BEST))["scaled_to"] == 3
    assert (await served.http.post(path, params={"replicas": "auto"})).json()["state"] == "unscaled"
    assert (await row(served, BEST))["scaled_to"] is None
    listed = (await served.http.get("/decisions")).json()["decisions"]
    assert [(each["kind"], each["reason"]) for each in listed] == [("unscaled", ""), ("scaled", "3 workers")]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?replicas=65", "wrong value of replicas; expected at most 64 or 'auto'"),
        ("?replicas=0", "wrong value of replicas; expected at least 1 or 'auto'"),
        ("?replicas=x", "wrong value of replicas; expected a valid integer or 'auto'"),
        ("?replicas=2&dry_run=perhaps", "wrong value of dry_run; expected a valid boolean"),
        ("", "the parameter replicas is missing"),
    ],
)
async def test_a_wrong_parameter_is_answered_with_its_name_and_what_is_expected(
    served: Served, query: str, detail: str
) -> None:
    answer = await served.http.post(f"/models/{MODEL}/versions/{BEST}/scale{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "parameter_invalid")
    assert answer.json()["detail"] == detail


@pytest.mark.parametrize("action", ["disable", "retire", "pin", "scale"])
async def test_a_dry_run_says_what_would_be_done_and_changes_nothing(served: Served, action: str) -> None:
    path = f"/models/{MODEL}/versions/{OTHER}/{action}"
    replicas = {"replicas": "auto"} if action == "scale" else {}
    answer = (await served.http.post(path, params={"dry_run": "true", **replicas})).json()
    assert answer["dry_run"] is True
    assert answer["model_version"] == OTHER
    assert (await row(served, OTHER))["excluded"] == ""
    assert await chosen(served) == BEST
    assert (await served.http.get("/decisions")).json()["decisions"] == []


async def test_a_dry_run_is_refused_where_the_action_is(served: Served) -> None:
    refused = await served.http.delete(f"/models/{MODEL}/versions/{BEST}", params={"dry_run": "true"})
    assert (refused.status_code, refused.json()["code"]) == (409, "version_in_use")
    unknown = await served.http.post("/models/Nobody/unpin", params={"dry_run": "true"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_unknown")
