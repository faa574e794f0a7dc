"""Models of every kind of contract, from a registry through real workers to an HTTP answer, and under SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RedisServer
from tests.controller.conftest import Served, serving, settings_for, until
from tests.published import misfits, openapi_problems
from tests.workers import kinds
from tests.workers.worker_processes import Start

ANSWERS: dict[str, Any] = {
    "pipeline_on_mixed_columns": ["no", "yes"],
    "onnx_with_two_inputs": {"kept": [[1.0, 2.0, 0.0], [3.0, 0.0, 8.0]], "largest": [1, 2]},
    "no_signature": [{"n": 2, "t": "x!"}, {"n": 4, "t": "y!"}],
    "type_hints": [{"label": "2 for 1"}, {"label": "0 for 2"}],
}


async def accepted(served: Served, name: str, body: Any) -> httpx.Response:
    """The answer to a post that is sent until it is accepted: a killed worker may not be back yet."""
    give_up_at = time.monotonic() + 60
    while (posted := await served.http.post(f"/predict?model={name}", json=body)).status_code == 503:
        assert time.monotonic() < give_up_at, posted.text
        await asyncio.sleep(0.1)
    assert posted.status_code == 202, posted.text
    return posted


@pytest.mark.filterwarnings("ignore")
async def test_real_workers_serve_each_kind_of_contract_and_a_killed_one_loses_nothing(
    start_worker: Start, empty_database: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    registry = kinds.new_registry(empty_database, tmp_path)
    made = {script: kinds.register(script, registry) for script in ANSWERS}
    for script, each in made.items():
        wanted = dict.fromkeys(kinds.KINDS[script].settings, "true")
        start_worker("1", MLFLOW_TRACKING_URI=registry, MODEL_NAME=each.name, **wanted)
    async with serving(settings_for(redis_server.url)) as served:
        watcher = served.app.services.watcher
        await until(
            lambda: len(watcher.view.snapshot.ready_versions) == len(made), "the workers are ready", 120
        )
        pool = (await served.http.get("/workers")).json()["workers"]
        by_name = {each["model_name"]: each for each in pool}
        for script, each in made.items():
            name, body = each.name, each.body
            answer = await served.http.post(f"/predict?model={name}&wait=30", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"] == ANSWERS[script], answer.text
            assert "predictions" not in answer.json()
            document = (await served.http.get(f"/models/{name}/versions/1/openapi.json")).json()
            assert not openapi_problems(document)
            [operation] = document["paths"][f"/models/{name}/versions/1/predict"].values()
            assert not misfits(document, operation["requestBody"], body)
            assert not misfits(document, operation["responses"]["200"], answer.json())
            again = await served.http.post(f"/models/{name}/invocations", json=body)
            assert (again.status_code, again.json()) == (200, {"predictions": ANSWERS[script]})
            shown = by_name[name]
            assert shown["input"]["kind"] == kinds.KINDS[script].contract
            if shown["example"]:
                posted = await served.http.post(f"/predict?model={name}", json=shown["example"])
                assert posted.status_code == 202, posted.text
        # A worker of each is killed with jobs on its queue: the supervisor starts another, which runs them.
        jobs = []
        for each in made.values():
            os.kill(by_name[each.name]["replicas"][0]["pid"], signal.SIGKILL)
            jobs += [await accepted(served, each.name, each.body) for _ in range(5)]
        for posted in jobs:
            job = await served.http.get(f"{posted.json()['result_url']}?wait=30")
            assert job.json()["status"] == "succeeded", job.text
