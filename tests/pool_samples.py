"""Builders that the tests of several packages share: worker records, batches and outcomes with sane defaults."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import Any, Protocol

import numpy as np
import redis
import redis.asyncio

from app.contract import TensorContract
from app.ledger.commands import Accept, NewBatch
from app.ledger.ids import IdSigner
from app.ledger.wire import BatchHead, BatchOutcome, JobEntry, JobOutcome
from app.redis import keys
from app.redis.client import ledger_error
from app.redis.link import RedisLink
from app.worker_record import WorkerRecord, encode_record
from modelyard.inputs import read_input

MODEL = "MNIST_PyTorch_Model"
CONTRACT = TensorContract("float32", (1, 28, 28))
PAIR = TensorContract("float32", (2,))
SIGNER = IdSigner(b"s" * 32)
HEARTBEAT_S = 60.0


class RedisServer(Protocol):
    """What the `redis_server` fixture gives."""

    url: str
    process: subprocess.Popen[bytes]


def encode_samples(samples: Any, params: dict[str, Any] | None = None) -> tuple[str, bytes]:
    """Content type and body with which the client sends samples in one request."""
    given = read_input(samples, params)
    return given.encode(0, given.n_rows)


def now_ms() -> float:
    return time.time() * 1000


def record(version: int = 1, **fields: Any) -> WorkerRecord:
    """A ready worker of `MODEL` / `version`, whose worker number is its version."""
    name = fields.pop("model_name", MODEL)
    defaults: dict[str, Any] = {
        "worker_id": f"host-{version}",
        "worker": version,
        "queue": keys.queue_name(name, version),
        "model_name": name,
        "model_version": version,
        "run_id": "run",
        "val_accuracy": 0.9,
        "input": PAIR,
        "state": "ready",
        "started_at_ms": now_ms(),
        "heartbeat_at_ms": now_ms(),
    }
    return WorkerRecord(**{**defaults, **fields})


def publish(client: redis.Redis, worker: WorkerRecord, ttl_s: float = 3 * HEARTBEAT_S) -> None:
    """Write a worker's record as the worker itself would."""
    client.set(keys.worker(worker.worker_id), encode_record(worker), px=int(ttl_s * 1000))
    client.zadd(keys.WORKERS, {worker.worker_id: worker.heartbeat_at_ms})
    client.hset(keys.NUMBERS, worker.queue, worker.worker)
    client.publish(keys.POOL_CHANNEL, worker.worker_id)


def unpublish(client: redis.Redis, worker: WorkerRecord) -> None:
    """Take a worker's record away as the worker itself would."""
    client.delete(keys.worker(worker.worker_id))
    client.zrem(keys.WORKERS, worker.worker_id)
    client.publish(keys.POOL_CHANNEL, worker.worker_id)


def head(n_jobs: int = 1, queue_version: int = 1, **fields: Any) -> BatchHead:
    """Head of a batch of one-sample jobs."""
    deadline_ms = fields.pop("deadline_ms", now_ms() + 60_000)
    defaults: dict[str, Any] = {
        "queue": keys.queue_name(MODEL, queue_version),
        "worker": queue_version,
        "reply_to": "controller",
        "model_name": MODEL,
        "model_version": queue_version,
        "val_accuracy": 0.9,
        "dtype": PAIR.dtype,
        "sample_shape": PAIR.sample_shape,
        "jobs": [
            JobEntry(1, now_ms(), deadline_ms, "highest_val_accuracy", forced=False) for _ in range(n_jobs)
        ],
    }
    return BatchHead(**{**defaults, **fields})


def new_batch(n_jobs: int = 1, signer: IdSigner = SIGNER, **fields: Any) -> NewBatch:
    """A batch ready to be accepted; job `i`'s sample is `[i, i]`."""
    accepted_at_ms = fields.pop("accepted_at_ms", now_ms())
    once = fields.pop("once", ())
    batch_head = head(n_jobs, **fields)
    n_samples = sum(job.n_samples for job in batch_head.jobs)
    data = np.repeat(np.arange(n_samples), 2).astype(batch_head.dtype).tobytes()
    batch_id = signer.new_batch_id(accepted_at_ms, n_jobs)
    return NewBatch(batch_id, batch_head, data, b"message " + batch_id.encode(), accepted_at_ms, once)


async def accept(client: redis.asyncio.Redis, *batches: NewBatch, retention_s: float = 100.0) -> None:
    """Have batches accepted, as a controller does."""
    link = RedisLink(client, timeout_s=10.0)
    await link.connect()
    try:
        for batch in batches:
            reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            Accept.of(batch, int(retention_s * 1000)).send(link, reply.set_result)
            answer = await reply
            if isinstance(answer, Exception):
                raise ledger_error(answer)
            assert answer in (0, 1), "no idempotency key was lost"
    finally:
        await link.close()


def accept_now(url: str, *batches: NewBatch, retention_s: float = 100.0) -> None:
    """The same, in an event loop of its own."""

    async def go() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await accept(client, *batches, retention_s=retention_s)

    asyncio.run(go())


def outcome(n_jobs: int = 1, worker_id: str = "host-1", **fields: Any) -> BatchOutcome:
    """Every job succeeded with class 7."""
    scores = np.array([0.25, 0.75], "<f4").tobytes()
    defaults: dict[str, Any] = {
        "started_at_ms": now_ms(),
        "finished_at_ms": now_ms(),
        "inference_ms": 1.5,
        "n_samples": n_jobs,
        "jobs": [JobOutcome("succeeded", [7], scores) for _ in range(n_jobs)],
    }
    return BatchOutcome(worker_id=worker_id, **{**defaults, **fields})
