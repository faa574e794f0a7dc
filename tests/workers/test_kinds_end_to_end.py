"""Models of every kind of contract, from a registry through real workers to an HTTP answer, and under SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from tests.conftest import RedisServer
from tests.controller.conftest import Served, serving, settings_for, until
from tests.published import misfits, openapi_problems
from tests.workers.kinds import kinds
from tests.workers.worker_processes import Start

SERVED = (
    "pipeline on mixed columns",
    "two named tensors answering a dictionary",
    "no signature at all",
)
TENSORS = {"sum": [6, 15], "mask": [[0.5, 0.0], [0.25, 0.125]]}
ANSWERS: dict[str, Any] = {
    "pipeline on mixed columns": ["no", "yes"],
    "two named tensors answering a dictionary": TENSORS,
    "no signature at all": [{"n": 2, "t": "x!"}, {"n": 4, "t": "y!"}],
}


def register(registry: str, folder: Path) -> dict[str, str]:
    """Register the kinds, and answer the model name of each."""
    mlflow.set_tracking_uri(registry)
    client, made, names = mlflow.MlflowClient(), kinds(), {}
    for place, kind in enumerate(SERVED):
        name = names[kind] = f"Kind{place}"
        made[kind].save(str(folder / name))
        client.create_registered_model(name)
        client.create_model_version(name, str(folder / name))
    return names


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
    start_worker: Start, registry: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    names, made = register(registry, tmp_path), kinds()
    for name in names.values():
        start_worker("1", MODEL_NAME=name, MODELYARD_ALLOW_PICKLE_MODELS="true")
    async with serving(settings_for(redis_server.url)) as served:
        watcher = served.app.services.watcher
        await until(lambda: len(watcher.view.snapshot.candidates) == len(names), "the workers are ready", 120)
        pool = (await served.http.get("/workers")).json()["workers"]
        by_name = {each["model_name"]: each for each in pool}
        for kind, name in names.items():
            answer = await served.http.post(f"/predict?model={name}&wait=30", json=made[kind].body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"] == ANSWERS[kind], answer.text
            assert "predictions" not in answer.json()
            document = (await served.http.get(f"/models/{name}/versions/1/openapi.json")).json()
            assert not openapi_problems(document)
            [operation] = document["paths"][f"/models/{name}/versions/1/predict"].values()
            assert not misfits(document, operation["requestBody"], made[kind].body)
            assert not misfits(document, operation["responses"]["200"], answer.json())
            again = await served.http.post(f"/models/{name}/invocations", json=made[kind].body)
            assert (again.status_code, again.json()) == (200, {"predictions": ANSWERS[kind]})
            shown = by_name[name]
            assert shown["input"]["kind"] == made[kind].contract
            if shown["example"]:
                posted = await served.http.post(f"/predict?model={name}", json=shown["example"])
                assert posted.status_code == 202, posted.text
        # A worker of each is killed with jobs on its queue: the supervisor starts another, which runs them.
        jobs = []
        for kind, name in names.items():
            os.kill(by_name[name]["replicas"][0]["pid"], signal.SIGKILL)
            jobs += [await accepted(served, name, made[kind].body) for _ in range(5)]
        for each in jobs:
            job = await served.http.get(f"{each.json()['result_url']}?wait=30")
            assert job.json()["status"] == "succeeded", job.text
