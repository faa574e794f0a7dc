"""Numbers on their way through a worker: exact in every dtype, and never a guess where a model answers NaN."""

from __future__ import annotations

import asyncio
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.contract import DTYPES, TensorContract
from app.ledger.commands import NewBatch
from app.ledger.ids import JobRef
from app.ledger.wire import BatchHead, BatchOutcome, JobEntry
from app.redis import keys
from app.worker_record import decode_record
from controller.http.job_json import job_json
from controller.input import bodies, json_numbers
from modelyard import AsyncClient
from modelyard.schemas import Job
from tests.conftest import WaitUntil
from tests.controller.conftest import serving, settings_for
from tests.pool_samples import SIGNER, RedisServer, encode_samples, head, now_ms
from tests.workers.model_versions import pt2
from tests.workers.model_versions import settings as model_settings
from tests.workers.runner_bench import Bench, Predict
from tests.workers.worker_processes import Start
from workers import model

NAN, INF = math.nan, math.inf
FINITE = {"allow_nan": False, "allow_infinity": False}


def run(bench: Bench, samples: Any, counts: list[int], predict: Predict, **of_model: Any) -> list[Job]:
    """Run one batch of jobs of so many samples each, and read each job as the client does."""
    batch_head = head(
        dtype=samples.dtype.name,
        sample_shape=samples.shape[1:],
        jobs=[JobEntry(count, now_ms(), now_ms() + 60_000, "", forced=False) for count in counts],
    )
    batch_id = SIGNER.new_batch_id(now_ms(), len(counts))
    bench.accept(NewBatch(batch_id, batch_head, samples.tobytes(), b"message", now_ms(), ()))
    bench.runner(predict, **of_model).run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome
    return [read(batch_id, batch_head, outcome, index) for index in range(len(counts))]


def read(batch_id: str, batch_head: BatchHead, outcome: BatchOutcome, index: int) -> Job:
    status = outcome.jobs[index].status
    text = job_json(JobRef(batch_id, index), batch_head, status, outcome)
    return msgspec.json.decode(text, type=Job)


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_of_every_dtype_come_back_as_they_were_sent(
    bench: Bench, name: str, data: st.DataObject
) -> None:
    shape = st.tuples(st.integers(1, 3), st.integers(2, 3))
    elements = FINITE if name.startswith("float") else None
    array = data.draw(arrays(name, shape, elements=elements))
    contract = TensorContract(name, array.shape[1:])
    content_type, body = encode_samples(array)
    numbers = bodies.parse(content_type.encode(), body).numbers(contract)
    samples = np.frombuffer(json_numbers.to_samples(numbers, contract, 3), name).reshape(array.shape)

    [job] = run(bench, samples, [len(array)], lambda rows: rows)
    assert job.scores is not None
    assert (job.scores_dtype, job.scores.dtype) == (name, array.dtype)
    assert job.scores.tobytes() == array.tobytes()
    assert job.classes.tolist() == array.argmax(axis=1).tolist()
    if name != "float32":  # of which JSON has the shortest digits that tell it from its neighbours
        exact = [[Fraction(number) for number in row] for row in array.tolist()]
        assert [[Fraction(number or 0) for number in each.scores or ()] for each in job.predictions] == exact

    values = run(bench, samples, [len(array)], lambda rows: rows[:, 0])[0]
    assert values.classes.tolist() == array[:, 0].tolist()
    assert values.scores is None


def test_booleans_and_big_endian_numbers_come_back_too(bench: Bench) -> None:
    samples = np.array([[0, 1], [2, 3]], np.float32)
    [flags] = run(bench, samples, [2], lambda rows: rows > 1)
    assert (flags.scores_dtype, flags.predictions[1].scores) == ("bool", (1, 1))
    assert flags.scores is not None
    assert flags.scores.tolist() == [[False, False], [True, True]]
    big = np.array([[2**53 + 1, -1], [-(2**63), 0]])
    [swapped] = run(bench, samples, [2], lambda _: big.astype(">i8"))
    assert swapped.scores is not None
    assert (swapped.scores.dtype, swapped.scores.tolist()) == (np.int64, big.tolist())
    assert swapped.classes.tolist() == [0, 1]


ROWS = np.array([[0.1, 0.7, 0.2], [0.1, NAN, 0.2], [0.5, 0, 0], [1, 2, INF], [0, 0, 1], [-INF, 1, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_job_with_nan_or_an_infinity_in_its_own_rows_fails_and_no_other(bench: Bench, dtype: str) -> None:
    samples = np.zeros((6, 2), np.float32)
    jobs = run(bench, samples, [1, 1, 2, 1, 1], lambda _: ROWS.astype(dtype))
    assert [job.status for job in jobs] == ["succeeded", "failed", "failed", "succeeded", "failed"]
    for job in jobs:
        if job.error:
            assert job.error.code == "output_not_finite"
            assert "MODELYARD_ALLOW_NON_FINITE" in job.error.detail
            assert job.predictions == ()
        else:
            assert job.scores is not None
            assert np.isfinite(job.scores).all()
    values = run(bench, samples, [1, 1, 2, 1, 1], lambda _: ROWS[:, 1].astype(dtype))
    assert [job.status for job in values] == ["succeeded", "failed", "succeeded", "succeeded", "succeeded"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_where_a_model_means_nan_its_class_is_none_and_never_guessed(bench: Bench, dtype: str) -> None:
    samples = np.zeros((6, 2), np.float32)
    jobs = run(bench, samples, [1, 1, 2, 1, 1], lambda _: ROWS.astype(dtype), allows_non_finite=True)
    assert {job.status for job in jobs} == {"succeeded"}
    classes = [each.predicted for job in jobs for each in job.predictions]
    assert classes == [1, None, 0, 2, 2, 1]
    nan_row = jobs[1].predictions[0]
    assert nan_row.scores is not None
    assert [score is None for score in nan_row.scores] == [False, True, False]
    assert nan_row.confidence is None
    assert jobs[1].scores is not None
    assert (jobs[1].scores.dtype, np.isnan(jobs[1].scores).tolist()) == (dtype, [[False, True, False]])
    assert np.isnan(jobs[1].classes).tolist() == [True]
    values = run(bench, samples, [6], lambda _: ROWS[:, 1].astype(dtype), allows_non_finite=True)[0]
    assert [each.predicted is None for each in values.predictions] == [False, True, *[False] * 4]


def test_a_model_that_answers_nan_to_zeros_is_served_and_the_log_says_what_to_expect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    class Share(torch.nn.Module):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return samples / samples.sum(dim=1, keepdim=True)

    n_samples = torch.export.Dim("n_samples")
    program = torch.export.export(Share(), (torch.ones(2, 4),), dynamic_shapes=({0: n_samples},))
    torch.export.save(program, tmp_path / "model.pt2")
    found = pt2(tmp_path, (-1, 4))
    loaded = model.load(found, model_settings("", "1", device="cpu"))
    assert loaded.predict(np.ones((1, 4), np.float32)).tolist() == [[0.25] * 4]
    assert not loaded.allows_non_finite
    assert "MODELYARD_ALLOW_NON_FINITE" in caplog.text
    caplog.clear()
    assert model.load(found, model_settings("", "1", device="cpu", allow_non_finite=True)).allows_non_finite
    assert "MODELYARD_ALLOW_NON_FINITE" not in caplog.text


def ready(url: str) -> set[str]:
    """Queues that have a ready worker."""
    with redis.Redis.from_url(url) as client:
        stored = [client.get(keys.worker(worker.decode())) for worker in client.zrange(keys.WORKERS, 0, -1)]
    records = [decode_record(each) for each in stored if isinstance(each, bytes)]
    return {record.queue for record in records if record.state == "ready"}


def test_real_workers_answer_the_numbers_that_their_models_did(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    start_worker("1", MODEL_NAME="Echo", MODELYARD_ALLOW_NON_FINITE="true")
    start_worker("2", MODEL_NAME="Echo")
    queues = {keys.queue_name("Echo", 1), keys.queue_name("Echo", 2)}
    wait_until(lambda: ready(redis_server.url) == queues, timeout_s=60, what="both workers are ready")
    big = np.array([[2**63 - 1, -(2**63), 2**53 + 1], [16777217, 0, -1]])
    fine = np.array([[123456789.25, 1 / 3, -5e-324], [666, 1, 2]])

    async def ask() -> None:
        async with serving(settings_for(redis_server.url)) as served:
            transport = httpx.ASGITransport(app=served.app)
            async with AsyncClient("http://127.0.0.1", transport=transport) as client:
                integers = await client.predict(big, version=2)
                assert integers.scores is not None
                assert (integers.scores.dtype, integers.scores.tolist()) == (np.int64, big.tolist())
                floats = await client.predict(fine, version=1)
                assert floats == await client.result(floats.id)
                assert floats.scores is not None
                assert floats.scores[0].tolist() == fine[0].tolist()
                assert [each.predicted for each in floats.predictions] == [0, None]
                assert floats.predictions[1].scores == (None, 1.0, 2.0)
            text = (await served.http.get(f"/results/{integers.id}")).text
            assert json.loads(text)["predictions"][0]["scores"] == big[0].tolist()
            mixed = await served.post({"data": [2**53 + 1, 1.0, 0]}, "?version=2")
            assert (mixed.status_code, mixed.json()["code"]) == (422, "input_not_numeric")
            assert "2**53" in mixed.json()["detail"]

    asyncio.run(ask())
