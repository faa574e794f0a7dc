"""What a user sees: the better version answers, any version can be forced, and traffic follows the workers."""

from __future__ import annotations

import httpx
import pytest

from modelyard import Client
from tests.e2e.conftest import Digits, Pool, queues_in, ready_workers


@pytest.mark.timeout(300)
def test_traffic_goes_to_the_best_live_version_and_back(
    served: tuple[Pool, str, Client], digits: Digits
) -> None:
    pool, url, _ = served

    def predict(index: int = 0, query: str = "wait=10") -> httpx.Response:
        return httpx.post(f"{url}/predict?{query}", json=digits.body(index), timeout=30)

    rows = {row["worker"]: row for row in httpx.get(f"{url}/workers").json()["workers"]}
    assert rows[2]["val_accuracy"] > rows[1]["val_accuracy"]
    [route] = httpx.get(f"{url}/route").json()["routes"]
    assert 0 < route["tie_p"] <= 1  # training logs which samples each version got right
    answers = [predict(index).json() for index in range(20)]
    assert {(job["worker"], job["model_version"], job["forced"]) for job in answers} == {(2, 2, False)}
    right = sum(job["predictions"][0]["class"] == digits.labels[i] for i, job in enumerate(answers))
    assert right >= 18
    assert all(abs(sum(job["predictions"][0]["scores"]) - 1) < 1e-3 for job in answers)

    for number in (1, 2):
        forced = predict(query=f"wait=10&worker={number}").json()
        assert (forced["worker"], forced["model_version"], forced["forced"]) == (number, number, True)
    assert predict(query="wait=10&version=1").json()["worker"] == 1

    [pid] = [replica["main_pid"] for replica in rows[2]["replicas"]]
    [better] = [process for process in pool.processes if process.pid == pid]
    assert pool.stop(better) == 0
    pool.wait_until(lambda: ready_workers(url) == 1, what="the stopped worker is gone")
    moved = predict().json()
    assert (moved["worker"], moved["status"]) == (1, "succeeded")
    assert predict(query="worker=2").status_code == 503

    pool.worker(2, 2)
    pool.wait_for_workers(url, 2)
    assert predict().json()["worker"] == 2


def test_flower_shows_workers_queues_and_batches(served: tuple[Pool, str, Client], digits: Digits) -> None:
    pool, url, client = served
    port = pool.give_port()
    process = pool.start("cli", "flower", f"--port={port}", FLOWER_UNAUTHENTICATED_API="true")
    flower = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    expected = {row["queue"] for row in httpx.get(f"{url}/workers").json()["workers"]}
    pool.wait_until(lambda: queues_in(flower) == expected, timeout_s=60, what="Flower lists both queues")
    job = client.predict(digits.images[:1])

    def batch() -> dict[str, object]:
        tasks: dict[str, dict[str, object]] = flower.get("/api/tasks").json()
        return tasks.get(job.id.partition(".")[0], {})

    pool.wait_until(lambda: batch().get("state") == "SUCCESS", what="Flower lists the job's batch")
    assert batch()["name"] == "modelyard.run_batch"
    flower.close()
    process.terminate()
