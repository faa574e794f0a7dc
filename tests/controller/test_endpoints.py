"""Endpoints over HTTP, and the explanations of routes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis

from app.redis import keys
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings
from controller.main import create_app
from controller.selector import Selector
from modelyard.schemas import RouteExplanation, RoutePlan
from tests.controller.conftest import HandWorker, Serve, settings_for, until
from tests.pool_samples import MODEL, RedisServer
from tests.published import problems

HandWorkers = Callable[..., HandWorker]
OTHER = "Other"
SCHEMAS = create_app(ControllerSettings()).fastapi.openapi()["components"]["schemas"]
ON_360: dict[str, Any] = {"dataset": "digits", "dataset_digest": "d1", "dataset_rows": 360}


async def test_with_several_endpoints_a_request_must_name_one(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker(1, val_accuracy=0.8)
    hand_worker(2, worker=2, val_accuracy=0.9, model_name=OTHER)
    served = await serve()
    refused = await served.post()
    assert (refused.status_code, refused.json()["code"]) == (422, "endpoint_required")
    assert f"{MODEL}, {OTHER}" in refused.json()["detail"]
    for query in (f"?endpoint={OTHER}", f"?model={OTHER}", "?worker=2"):
        assert (await served.post(query=query)).json()["model_name"] == OTHER
    named = await served.http.post(f"/endpoints/{OTHER}/predict", json={"data": [[1, 2]]})
    assert (named.status_code, named.json()["worker"]) == (202, 2)
    both = await served.post(query=f"?endpoint={OTHER}&model={OTHER}")
    assert (both.status_code, both.json()["code"]) == (422, "parameters_contradict")
    unknown = await served.http.get("/route?endpoint=Othr")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "endpoint_unknown")


async def test_a_job_and_a_dry_run_say_why_the_version_was_chosen(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    aliases: dict[str, Any] = {"aliases": {"champion": 1}, "aliases_read_at_ms": 1}
    hand_worker(1, val_accuracy=0.95, val_accuracy_source="model", **ON_360, **aliases)
    hand_worker(2, val_accuracy=0.97, val_accuracy_source="model", **ON_360)
    hand_worker(3, val_accuracy=0.5, val_accuracy_source="model", **ON_360)
    served = await serve()
    accepted = (await served.post()).json()
    assert "route" not in accepted
    alias = f'modelyard_version_alias_info{{alias="champion",model="{MODEL}",version="1",worker="1"}} 1.0'
    assert alias in (await served.http.get("/metrics")).text
    answer = await served.http.get(f"{accepted['result_url']}?explain=true")
    route = explained(answer)
    assert (route.endpoint, route.worker, route.decided_by, route.comparable) == (MODEL, 1, "champion", True)
    assert (route.tied, [each.worker for each in route.candidates]) == ((1, 2), [1, 2, 3])
    assert route.tie_band == pytest.approx(0.029, abs=0.001)
    assert (route.candidates[0].val_accuracy_source, route.candidates[0].dataset_rows) == ("model", 360)
    assert planned(await served.http.get("/route")) == (route,)

    # Another controller reads the decision from Redis, also after the pool has changed.
    hand_worker(4, val_accuracy=0.99, **ON_360)
    await until(lambda: client.keys(keys.decision("*")), "the decision is written")
    other = await serve()
    assert explained(await other.http.get(f"{accepted['result_url']}?explain=true")) == route

    forced = (await served.post(query="?worker=3")).json()
    route = explained(await served.http.get(f"{forced['result_url']}?explain=true"))
    assert (route.worker, route.policy, route.decided_by) == (3, "forced", "request")


async def test_figures_of_undeclared_data_sets_are_never_compared_silently(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, val_accuracy=0.8)
    served = await serve()
    assert "comparable" not in (await served.post()).json()
    hand_worker(2, val_accuracy=0.9)
    await until(lambda: len(served.services.watcher.view.snapshot.ready_versions) == 2)
    receipt = (await served.post()).json()
    assert (receipt["worker"], receipt["comparable"]) == (2, False)


async def test_a_request_in_a_hurry_gets_the_best_version_that_is_in_time(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, val_accuracy=0.8)
    hand_worker(2, val_accuracy=0.9, inference_ms={"p50": 4_000.0}, batches_done=1, jobs_done=1)
    served = await serve()
    assert (await served.post(query="?deadline=60")).json()["worker"] == 2
    hurried = (await served.post(query="?deadline=2")).json()
    assert (hurried["worker"], hurried["degraded"]) == (1, True)
    route = explained(await served.http.get(f"{hurried['result_url']}?explain=true"))
    assert (route.worker, route.decided_by, route.degraded) == (1, "deadline", True)
    assert [each.expected_answer_s for each in route.candidates] == [4.0, 0.0]


async def test_a_version_that_was_too_late_is_measured_with_its_example_and_comes_back(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, val_accuracy=0.8)
    best = hand_worker(2, val_accuracy=0.9, example='{"data":[[1,2]]}', recent_pass_ms=4_000.0)
    served = await serve()
    assert (await served.post(query="?deadline=60")).json()["worker"] == 2
    best.finish(await best.claimed())
    assert (await served.post(query="?deadline=2")).json()["worker"] == 1
    best.finish(await best.claimed())  # its example: no request was given to it
    hand_worker(2, val_accuracy=0.9, recent_pass_ms=1.0)
    await served.services.watcher.refresh()
    receipt = (await served.post(query="?deadline=2")).json()
    assert (receipt["worker"], receipt.get("degraded")) == (2, None)


async def test_a_receipt_and_the_pool_name_the_metric_that_ranks_a_version(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    by_rmse: dict[str, Any] = {"val_accuracy": None, "metric": "rmse", "direction": "lower", **ON_360}
    hand_worker(1, metric_value=4.5, **by_rmse)
    hand_worker(2, metric_value=5.5, **by_rmse)
    served = await serve()
    accepted = (await served.post()).json()
    assert not problems("Job", accepted, SCHEMAS)
    shown = ("worker", "val_accuracy", "metric", "direction", "metric_value", "policy")
    assert [accepted[each] for each in shown] == [1, None, "rmse", "lower", 4.5, "best_metric"]
    route = explained(await served.http.get(f"{accepted['result_url']}?explain=true"))
    assert [each.metric_value for each in route.candidates] == [4.5, 5.5]
    worker = (await served.http.get("/workers")).json()["workers"][0]
    assert (worker["metric"], worker["direction"], worker["metric_value"]) == ("rmse", "lower", 4.5)


FILE = f"""
[endpoints.digits]
models = ["{MODEL}"]
default = true
"""


async def test_the_file_says_which_endpoint_is_the_default_and_its_edits_are_followed(
    serve: Serve, hand_worker: HandWorkers, tmp_path: Path
) -> None:
    file = tmp_path / "modelyard.toml"
    file.write_text(FILE)
    hand_worker(1, val_accuracy=0.8)
    hand_worker(2, val_accuracy=0.9)
    hand_worker(3, worker=3, val_accuracy=1.0, model_name=OTHER)
    served = await serve(pool_file=file)
    assert (await served.post()).json()["worker"] == 2
    assert (await served.post(query="?endpoint=digits")).json()["worker"] == 2
    assert (await served.post(query=f"?endpoint={OTHER}")).json()["worker"] == 3

    file.write_text(FILE + "pinned = 1\n")
    await until(lambda: served.services.watcher.view.snapshot.excluded, "the edit is followed")
    assert (await served.post()).json()["worker"] == 1
    assert (await served.post(query="?worker=2")).json()["worker"] == 2
    [route] = planned(await served.http.get("/route"))
    assert [(each.model_version, each.reason) for each in route.excluded] == [(2, "pinned")]
    shown = {each["worker"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert [(shown[each]["rank"], shown[each]["chosen"]) for each in (1, 2, 3)] == [
        (1, True),
        (None, False),
        (1, True),
    ]

    file.write_text(FILE + "pinned = 1\nnonsense = 2\n")
    await served.services.watcher.refresh()
    assert (await served.post()).json()["worker"] == 1


async def test_an_endpoint_states_the_deadline_and_the_wait_of_its_requests(
    serve: Serve, hand_worker: HandWorkers, tmp_path: Path
) -> None:
    file = tmp_path / "modelyard.toml"
    file.write_text(FILE + "deadline_s = 20\nwait_s = 0.25\n")
    hand_worker(1)
    second = hand_worker(2, worker=2, model_name=OTHER)
    served = await serve(pool_file=file)

    async def plan(query: str) -> tuple[float | None, float | None]:
        found = msgspec.json.decode((await served.http.get(f"/route{query}")).content, type=RoutePlan)
        return found.deadline_s, found.wait_s

    assert await plan("") == await plan(f"?model={MODEL}") == await plan("?endpoint=digits") == (20, 0.25)
    assert await plan("?deadline=3&wait=2") == (3, 2)
    assert await plan(f"?model={OTHER}") == await plan("?worker=1") == (60, 0)
    head = {"endpoint": "digits"}
    posted = functools.partial(served.http.post, "/predict", params=head, json={"data": [1, 2]})
    await posted()
    file.write_text(FILE + "deadline_s = 1\nwait_s = 20\n")
    await until(lambda: served.services.endpoints.deadline_s(Selector()) == 1, "the edit is followed")
    # The same bytes as before, whose head is known: the caller waits, and the job expires by the new deadline.
    assert (await posted()).json()["status"] == "expired"
    assert (await posted(headers={"prefer": "respond-async"})).status_code == 202
    # The path names another model: neither default is its own. Other protocols wait as long as they may.
    other = served.http.post(f"/models/{OTHER}/invocations", json={"inputs": [[1, 2]]})
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(other)
        batch = await second.claimed()
        second.finish(batch)
    [job] = batch.head.jobs
    assert (answer.result().status_code, job.deadline_ms - job.received_at_ms) == (200, 60_000)


def test_a_file_with_mistakes_stops_the_start(redis_server: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.toml"
    file.write_text("[endpoints.digits]\nmodel = 1\n")
    with pytest.raises(ConfigurationError, match="did you mean `models`"):
        create_app(settings_for(redis_server.url, pool_file=file))
    file.write_text("[endpoints.digits]\nmodels = 'digits'\nwait_s = 61\n")
    with pytest.raises(ConfigurationError, match=r":3: `wait_s` is 61; expected at most 60"):
        create_app(settings_for(redis_server.url, pool_file=file))


def explained(answer: httpx.Response) -> RouteExplanation:
    """The route of a job, whose answer keeps to the published schemas."""
    document = answer.json()
    assert not problems("Job", document, SCHEMAS)
    return msgspec.convert(document["route"], RouteExplanation)


def planned(answer: httpx.Response) -> tuple[RouteExplanation, ...]:
    assert not problems("RoutePlan", answer.json(), SCHEMAS)
    return msgspec.json.decode(answer.content, type=RoutePlan).routes
