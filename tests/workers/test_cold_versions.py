"""Versions without a ready worker, for which an endpoint accepts requests."""

from __future__ import annotations

from pathlib import Path

import redis

from app.contract import TensorContract
from tests.conftest import RedisServer
from tests.controller.conftest import serving, settings_for, until
from tests.pool_samples import publish, record, unpublish
from tests.workers.worker_processes import LIGHT, LIGHT_MODEL, Start


async def test_a_job_for_a_cold_version_runs_once_its_worker_starts(
    start_worker: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "modelyard.toml"
    file.write_text(f'[endpoints.front]\nmodels = ["{LIGHT_MODEL}"]\ncold = "accept"\n')
    settings = settings_for(redis_server.url, pool_file=file, heartbeat_s=0.5)
    former = record(1, model_name=LIGHT_MODEL, input=TensorContract("float64", (2,)))
    with redis.Redis.from_url(redis_server.url) as client:
        publish(client, former)
        async with serving(settings) as served:
            await until(lambda: served.services.watcher.view.snapshot.ready_versions, "it is ready", 60)
        unpublish(client, former)

    async with serving(settings) as served:  # a controller that has never seen a worker
        await until(lambda: served.services.watcher.view.snapshot.cold, "the pool is read", 60)
        [row] = (await served.http.get("/workers")).json()["workers"]
        assert (row["live_workers"], row["cold"], row["input"]["shape"]) == (0, True, [-1, 2])
        assert (await served.http.get("/readyz")).status_code == 200
        assert (await served.http.get("/route")).json()["routes"][0]["cold"]
        accepted = await served.post(query="?deadline=300")
        assert (accepted.status_code, accepted.json()["cold"]) == (202, True)
        start_worker("1", **LIGHT)
        url = f"{accepted.json()['result_url']}?wait=60&explain=true"
        job = (await served.http.get(url, timeout=120)).json()
        assert (job["status"], job["cold"], job["route"]["cold"]) == ("succeeded", True, True)
        # The outcome may arrive before the controller has read of the worker.
        await until(lambda: served.services.watcher.view.snapshot.ready_versions, "it is ready", 60)
        assert "cold" not in (await served.post(query="?wait=30")).json()
