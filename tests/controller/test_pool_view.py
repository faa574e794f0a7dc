"""What the controller tells of the pool: workers, metrics, health, documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.contract import TensorContract, TensorField, TensorsContract
from app.redis import keys
from controller import pool_watcher
from modelyard.schemas import Latency
from tests.controller.conftest import HandWorker, Serve, until
from tests.pool_samples import MODEL, now_ms

HandWorkers = Callable[..., HandWorker]


async def test_workers_lists_each_number_with_its_version_backlog_and_replicas(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, val_accuracy=0.8, jobs_done=3, jobs_failed=1, inference_ms=Latency(1.0, 2.0, 3.0))
    hand_worker(1, worker_id="host-1b", jobs_done=4, state="draining", heartbeat_at_ms=now_ms() - 1000)
    hand_worker(2, val_accuracy=None)
    served = await serve()
    await served.post(query="?worker=1")
    rows = (await served.http.get("/workers")).json()["workers"]
    assert [row["worker"] for row in rows] == [1, 2]
    first = rows[0]
    assert (first["model_name"], first["model_version"], first["val_accuracy"]) == (MODEL, 1, 0.8)
    assert (first["live_workers"], first["backlog_jobs"]) == (1, 1)
    assert first["oldest_job_age_s"] >= 0
    assert (first["jobs_done"], first["jobs_failed"]) == (7, 1)
    assert first["inference_ms"] == {"last": 1.0, "p50": 2.0, "p99": 3.0}
    assert first["input"] == {"dtype": "float32", "shape": [-1, 2]}
    assert (first["expected_wait_s"], rows[1]["expected_wait_s"]) == (0.001, 0.0)
    assert [each["state"] for each in first["replicas"]] == ["ready", "draining"]
    assert rows[1]["val_accuracy"] is None


@pytest.mark.parametrize(
    ("contract", "image"),
    [
        (
            TensorContract("float32", (1, 28, 28), image_scale=255),
            {"width": 28, "height": 28, "channels": 1, "layout": "CHW", "white": 255},
        ),
        (
            TensorsContract((TensorField("x", "uint8", (-1, -1, -1, 3)),)),
            {"width": None, "height": None, "channels": 3, "layout": "HWC", "white": 255},
        ),
        (TensorContract("float32", (4,)), None),
    ],
    ids=["grey", "any size", "no image"],
)
async def test_workers_tell_how_a_version_takes_images(
    contract: TensorContract | TensorsContract,
    image: dict[str, Any] | None,
    serve: Serve,
    hand_worker: HandWorkers,
) -> None:
    hand_worker(1, input=contract)
    served = await serve()
    [row] = (await served.http.get("/workers")).json()["workers"]
    assert row["input"].get("image") == image


async def test_a_queue_without_a_worker_is_listed_while_it_has_a_backlog(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post()
    worker.stop()
    rows = (await served.http.get("/workers")).json()["workers"]
    assert [(row["worker"], row["live_workers"], row["backlog_jobs"]) for row in rows] == [(1, 0, 1)]
    worker.finish(await worker.claimed())
    assert (await served.http.get("/workers")).json() == {"workers": []}


async def test_an_unreadable_worker_record_is_left_out_and_the_others_serve(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker(1)
    broken = hand_worker(2)
    client.set(keys.worker(broken.record.worker_id), b"{}")
    served = await serve()
    assert (await served.post()).json()["worker"] == 1


@pytest.mark.parametrize("quality", [97.5, -0.1, 1e308])
async def test_a_record_that_claims_an_impossible_quality_counts_as_one_without_and_says_so(
    serve: Serve, hand_worker: HandWorkers, quality: float
) -> None:
    hand_worker(1, val_accuracy=0.9)
    hand_worker(2, val_accuracy=quality)
    served = await serve()
    assert (await served.post()).json()["worker"] == 1
    row = (await served.http.get("/workers")).json()["workers"][1]
    assert row["val_accuracy"] is None
    [warning] = row["replicas"][0]["warnings"]
    assert "is ignored: expected a fraction in [0, 1]" in warning
    lines = (await served.http.get("/metrics")).text.splitlines()
    assert [
        each
        for each in lines
        if each.startswith('modelyard_val_accuracy_ratio{model="MNIST_PyTorch_Model",version="2",worker="2"}')
    ] == []
    [counted] = [
        each for each in lines if each.startswith('modelyard_unreadable_total{what="worker_record"}')
    ]
    assert float(counted.split()[-1]) >= 1


async def test_killed_workers_are_swept_off_the_list(serve: Serve, client: redis.Redis) -> None:
    client.zadd(keys.WORKERS, {"killed": now_ms() - 3_600_000})
    served = await serve()
    await served.services.watcher.refresh()
    assert client.zcard(keys.WORKERS) == 0


async def test_metrics_hold_the_series_of_every_kind(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker(1, val_accuracy=0.8, inference_ms=Latency(2.0, 2.0, 2.0))
    served = await serve()
    url = (await served.post()).headers["location"]
    await served.services.watcher.refresh()
    text = (await served.http.get("/metrics")).text
    for line in (
        'modelyard_val_accuracy_ratio{model="MNIST_PyTorch_Model",version="1",worker="1"} 0.8',
        'modelyard_inference_latency_seconds{model="MNIST_PyTorch_Model",version="1",worker="1"} 0.002',
        'modelyard_live_workers{model="MNIST_PyTorch_Model",version="1",worker="1"} 1.0',
        'modelyard_backlog_jobs{model="MNIST_PyTorch_Model",version="1",worker="1"} 1.0',
        'modelyard_oldest_job_age_seconds{model="MNIST_PyTorch_Model",version="1",worker="1"}',
        'modelyard_expected_wait_seconds{model="MNIST_PyTorch_Model",version="1",worker="1"} 0.001',
        'modelyard_batch_jobs_count{model="MNIST_PyTorch_Model",version="1",worker="1"} 1.0',
        'modelyard_dispatch_latency_seconds_count{model="MNIST_PyTorch_Model",version="1",worker="1"} 1.0',
    ):
        assert line in text
    worker.finish(await worker.claimed())
    await until(lambda: not served.services.dispatcher.sent, "the outcome is heard")
    text = (await served.http.get("/metrics")).text
    assert (
        'modelyard_jobs_total{model="MNIST_PyTorch_Model",outcome="succeeded",version="1",worker="1"} 1.0'
        in text
    )
    assert (
        'modelyard_end_to_end_latency_seconds_count{model="MNIST_PyTorch_Model",version="1",worker="1"} 1.0'
        in text
    )
    assert (
        'modelyard_end_to_end_latency_last_seconds{model="MNIST_PyTorch_Model",version="1",worker="1"}'
        in text
    )
    assert (await served.http.get(url)).json()["status"] == "succeeded"


async def test_two_replicas_of_a_queue_are_one_series(serve: Serve, hand_worker: HandWorkers) -> None:
    for i in range(2):
        hand_worker(1, worker_id=f"host-{i}", inference_ms=Latency(float(i), 1.0, 1.0))
    served = await serve()
    lines = [line for line in (await served.http.get("/metrics")).text.splitlines() if line[:1] != "#"]
    series = Counter(line.rsplit(" ", 1)[0] for line in lines)
    assert [name for name, count in series.items() if count > 1] == []
    assert 'modelyard_live_workers{model="MNIST_PyTorch_Model",version="1",worker="1"} 2.0' in lines


async def test_the_series_of_a_worker_that_is_gone_disappear(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post()
    worker.finish(await worker.claimed())
    await until(lambda: not served.services.dispatcher.sent, "the outcome is heard")
    assert 'worker="1"' in (await served.http.get("/metrics")).text
    worker.stop()
    await served.services.watcher.refresh()
    assert 'worker="1"' not in (await served.http.get("/metrics")).text


async def test_readiness_follows_the_workers_and_says_what_is_missing(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    served = await serve()
    answer = await served.http.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert "no worker is ready" in answer.json()["reasons"][0]
    hand_worker()
    await served.services.watcher.refresh()
    answer = await served.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    assert (await served.http.get("/healthz")).json() == {"status": "alive"}


async def test_a_controller_of_an_empty_pool_stays_with_its_load_balancer_for_reads(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    served, worker = await serve(), hand_worker()
    await served.services.watcher.refresh()
    url = (await served.post()).headers["location"]
    worker.finish(await worker.claimed())
    worker.stop()
    await served.services.watcher.refresh()
    assert (await served.http.get("/readyz")).status_code == 503
    answer = await served.http.get("/readyz/read")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    assert (await served.http.get(f"{url}?wait=5")).json()["status"] == "succeeded"
    served.services.drain.is_announced = True
    answer = await served.http.get("/readyz/read")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["the controller is stopping"])


async def test_what_nobody_foresaw_in_the_pool_does_not_end_the_refreshing(
    serve: Serve,
    hand_worker: HandWorkers,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = await serve()
    monkeypatch.setattr(pool_watcher, "build_snapshot", lambda *_, **__: 1 / 0)
    await until(lambda: "the pool could not be read" in caplog.text, "the refresh has failed")
    monkeypatch.undo()
    hand_worker()
    await until(lambda: served.services.watcher.view.records, "the worker is seen")


async def test_the_documentation_names_every_endpoint_and_needs_no_network(serve: Serve) -> None:
    served = await serve()
    document = (await served.http.get("/openapi.json")).json()
    added = document["components"]["schemas"].keys() & {"HTTPValidationError", "ValidationError"}
    assert not added, "FastAPI has added a format that nothing here answers"
    paths = document["paths"]
    assert paths.keys() >= {"/predict", "/results/{job_id}", "/workers", "/metrics", "/healthz", "/readyz"}
    page = (await served.http.get("/docs")).text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")


async def test_several_controllers_answer_for_each_others_jobs(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    controllers = [await serve() for _ in range(3)]
    urls = [(await each.post()).headers["location"] for each in controllers]
    for _ in urls:
        worker.finish(await worker.claimed())
    for each in controllers:
        states = [(await each.http.get(url)).json()["status"] for url in urls]
        assert states == ["succeeded"] * 3
