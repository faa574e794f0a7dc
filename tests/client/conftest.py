"""A small real HTTP server that speaks the controller's API, and can be told to refuse."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelyard import AsyncClient, Client, RetryPolicy

ATTEMPTS = 4
PROMPT = RetryPolicy(attempts=ATTEMPTS, backoff_s=0.001, max_backoff_s=0.005)


def answer(status: int, content: object, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(orjson.dumps(content), status, names, media_type="application/json")


def problem(status: int, code: str, detail: str = "no", **headers: str) -> Response:
    content = {"type": "about:blank", "title": "x", "status": status, "code": code, "detail": detail}
    return answer(status, content, **headers)


REPLICA = {
    "worker_id": "host-1",
    "state": "ready",
    "run_id": "",
    "started_at_ms": 1.5,
    "heartbeat_at_ms": 2.5,
    "jobs_done": 10,
    "jobs_failed": 1,
    "batches_done": 3,
    "batch_samples_last": 4,
    "batch_samples_mean": 3.5,
    "inference_ms": {"last": 0.5, "p50": 0.4, "p99": 0.9},
    "host": "host",
    "pid": 7,
    "main_pid": 6,
    "device": "cpu",
    "unreadable": 0,
}  # as a controller of the first release has it
RECEIPT = {
    "id": "a.0",
    "status": "queued",
    "worker": 1,
    "model_name": "M",
    "model_version": 1,
    "val_accuracy": None,
    "policy": "forced",
    "forced": True,
    "result_url": "/results/a.0",
}


class ControllerDouble:
    """The API's shapes without a pool: a sample of only `d / 10` is taken for the digit `d`.

    Attributes:
        refusals: Given, in order, instead of the next answers; None leaves the answer as it is.
        requests: What was asked: method, path, query, headers in lower case.
        polls_until_done: Times that a job is still `running` when it is looked at.
        outcome: Status that jobs end in.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.refusals: deque[Response | None] = deque()
        self.requests: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.polls_until_done = 0
        self.outcome = "succeeded"
        self.is_ready = True
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_by_key: dict[str, str] = {}

    def refuse_after(self, n_requests: int, status: int, code: str) -> None:
        """Answer the next requests as usual, and the one after them with a problem."""
        self.refusals.extend([None] * n_requests)
        self.refuse(status, code)

    def refuse(self, status: int, code: str, *, times: int = 1, **headers: str) -> None:
        """Answer the next requests with a problem."""
        self.refusals.extend(problem(status, code, **headers) for _ in range(times))

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/predict", self._refusing(self.predict), methods=["POST"]),
                Route("/results", self._refusing(self.results), methods=["GET"]),
                Route("/results/{job_id}", self._refusing(self.result), methods=["GET"]),
                Route("/results/{job_id}", self._refusing(self.cancel), methods=["DELETE"]),
                Route("/workers", self._refusing(self.workers)),
                Route("/readyz", self._refusing(self.readyz)),
            ]
        )

    def _refusing(self, handler: Callable[[Request, bytes], Response]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            body = await request.body()
            query, headers = dict(request.query_params), dict(request.headers)
            self.requests.append((request.method, request.url.path, query, headers))
            refusal = self.refusals.popleft() if self.refusals else None
            return refusal or handler(request, body)

        return handle

    def predict(self, request: Request, body: bytes) -> Response:
        worker = int(request.query_params.get("worker", "1"))
        if worker > 2:
            return problem(404, "worker_unknown", f"no worker {worker}; known: 1, 2")
        key = request.headers["idempotency-key"]
        job_id = self.job_by_key.setdefault(key, f"batch-{len(self.jobs)}.0")
        if job_id not in self.jobs:
            self.jobs[job_id] = self._receipt(job_id, worker, "worker" in request.query_params)
            samples = data_of(request.headers["content-type"], body)
            self.jobs[job_id]["digits"] = [round(float(np.sum(one)) * 10) for one in samples]
        return self._look(job_id, waits=float(request.query_params.get("wait", 0)) > 0)

    def _receipt(self, job_id: str, worker: int, forced: bool) -> dict[str, Any]:
        return {
            "id": job_id,
            "status": "queued",
            "worker": worker,
            "model_name": "MNIST_PyTorch_Model",
            "model_version": worker,
            "val_accuracy": 0.9 + worker / 100,
            "policy": "highest_val_accuracy",
            "forced": forced,
            "result_url": f"/results/{job_id}",
            "looks": 0,
        }

    def _look(self, job_id: str, waits: bool) -> Response:
        job = self.jobs[job_id]
        if waits and job["status"] in ("queued", "running"):
            job["looks"] += 1
            job["status"] = "running" if job["looks"] <= self.polls_until_done else self.outcome
        body = {name: value for name, value in job.items() if name not in ("looks", "digits")}
        if job["status"] == "failed":
            body["error"] = {"code": "model_failed", "detail": "the model raised ValueError"}
        if job["status"] == "succeeded":
            body["predictions"] = [
                {"class": digit, "scores": [float(i == digit) for i in range(10)]} for digit in job["digits"]
            ]
            times = {"inference_ms": 0.5, "queue_wait_ms": 1.5, "end_to_end_ms": 3.0}
            body |= times | {"batch_samples": len(job["digits"]), "worker_id": "host-1"}
        return answer(200 if job["status"] in ("succeeded", "failed") else 202, body)

    def result(self, request: Request, body: bytes) -> Response:
        job_id = request.path_params["job_id"]
        if job_id not in self.jobs:
            return problem(404, "job_unknown", f"no job {job_id}")
        return self._look(job_id, waits=float(request.query_params.get("wait", 0)) > 0)

    def results(self, request: Request, body: bytes) -> Response:
        bodies: list[bytes | memoryview] = []
        for job_id in request.query_params["ids"].split(","):
            known = job_id in self.jobs
            looked = self._look(job_id, True) if known else problem(404, "job_unknown", f"no job {job_id}")
            bodies.append(looked.body)
        return Response(b'{"jobs": [%b]}' % b",".join(bodies), media_type="application/json")

    def cancel(self, request: Request, body: bytes) -> Response:
        job = self.jobs[request.path_params["job_id"]]
        if job["status"] != "queued":
            return problem(409, "job_not_cancellable", f"the job is {job['status']}")
        job["status"] = "cancelled"
        return answer(200, {name: value for name, value in job.items() if name not in ("looks", "digits")})

    def workers(self, request: Request, body: bytes) -> Response:
        worker = {
            "worker": 1,
            "model_name": "MNIST_PyTorch_Model",
            "model_version": 3,
            "queue": "modelyard:queue:MNIST_PyTorch_Model:3",
            "val_accuracy": None,
            "live_workers": 1,
            "backlog_jobs": 4,
            "oldest_job_age_s": 0.25,
            "expected_wait_s": None,
            "inference_ms": {"last": 0.5, "p50": 0.4, "p99": 0.9},
            "jobs_done": 10,
            "jobs_failed": 1,
            "replicas": [REPLICA],
            "input": {"dtype": "float32", "shape": [-1, 1, 28, 28]},
            "something_newer": {},
        }
        return answer(200, {"workers": [worker]})

    def readyz(self, request: Request, body: bytes) -> Response:
        if self.is_ready:
            return answer(200, {"ready": True, "reasons": []})
        return answer(503, {"ready": False, "reasons": ["no live worker"]}, retry_after="1")


def data_of(content_type: str, body: bytes) -> Any:
    """The samples of a request's body."""
    if content_type == "application/x-npy":
        return np.load(io.BytesIO(body), allow_pickle=False)
    assert content_type == "application/json"
    return orjson.loads(body)["data"]


@contextmanager
def serving(double: ControllerDouble, **options: Any) -> Iterator[int]:
    """The port of a server of the double; it has stopped afterwards. `options` are uvicorn's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            double.app, log_level="warning", ws="none", lifespan="off", loop="asyncio", **options
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        ends_at_s = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < ends_at_s
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def served_double() -> Iterator[tuple[ControllerDouble, str]]:
    double = ControllerDouble()
    with serving(double) as port:
        yield double, f"http://127.0.0.1:{port}"


@pytest.fixture
def double(served_double: tuple[ControllerDouble, str]) -> ControllerDouble:
    served_double[0].reset()
    return served_double[0]


@pytest.fixture
def url(served_double: tuple[ControllerDouble, str]) -> str:
    return served_double[1]


Ask = Callable[..., Any]


def ask_sync(url: str, retry: RetryPolicy, transport: Any, method: str, *args: Any, **options: Any) -> Any:
    with Client(url, retry=retry, transport=transport) as client:
        return getattr(client, method)(*args, **options)


def ask_async(url: str, retry: RetryPolicy, transport: Any, method: str, *args: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, retry=retry, transport=transport) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest, url: str, double: ControllerDouble) -> Ask:
    """Call a method of either client on the double: `ask("predict", samples, worker=1)`."""

    def call(
        method: str,
        *args: Any,
        at: str = url,
        retry: RetryPolicy = PROMPT,
        transport: Any = None,
        **options: Any,
    ) -> Any:
        return request.param(at, retry, transport, method, *args, **options)

    return call
