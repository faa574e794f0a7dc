"""The clients: they execute the calls of `modelyard.calls` with httpx. The only file that imports httpx."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, Unpack
from urllib.request import getproxies, proxy_bypass

import httpx

from modelyard import calls
from modelyard.calls import BatchOptions, Call, Flow, JobFilter, RouteOptions, SubmitOptions
from modelyard.client_errors import AnswerUnreadableError, ControllerUnreachableError
from modelyard.errors import ConfigurationError, ModelyardError
from modelyard.inputs import Params, Samples
from modelyard.mapping import run_all, run_all_async
from modelyard.parts import Limits
from modelyard.retries import RetryPolicy
from modelyard.schemas import (
    BatchFile,
    Decision,
    Job,
    JobList,
    Readiness,
    RoutePlan,
    VersionControl,
    WorkerInfo,
)

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

DEFAULT_URL = "http://127.0.0.1:9000"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0  # in addition to the call's own wait time
FILE_PART_BYTES = 2**18
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class Client:
    """Synchronous client of a controller. Thread-safe.

    Failed connections, 429 and 503 are retried according to the policy. A refusal is raised as the class of
    `modelyard.errors` with the problem's code.

    Args:
        url: Address of the controller; default: the environment variable MODELYARD_URL, else http://127.0.0.1:9000.
        api_key: Key to send; default: the environment variable MODELYARD_API_KEY, if it is set.
        retry: The retry policy.
        transport: Transport to use instead of the network.

    Raises:
        ConfigurationError: The URL is invalid, or the key contains characters that cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._limits = Limits()
        self._http = _opened(httpx.Client, **_connection(url, api_key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        samples: Samples,
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """Submit samples and wait until the job has succeeded.

        Samples that are larger than a request may be are cut, sent to one version in several requests, and their
        outcomes are joined in order as a `JoinedJob`.

        Args:
            samples: One of:
                an array, shape (n_samples, ...) or one sample, of any number type, bool, text or datetime64: of NumPy,
                torch, or anything with `__array__`; a PIL image, uint8, shape (1, height, width[, channels]); a list
                of images or tensors of one shape, which are stacked; nested lists of the same, or a list of dicts, one
                a row; a dict of columns or of named tensors, each with a value for each row, or one row of single
                values; a table of pandas, polars or pyarrow, or anything with `__arrow_c_stream__`; a `Body`.
                None and NaN are missing values, which the version's contract may allow.
            params: Parameters of the version.
            wait_s: Seconds to wait for the outcome; refused attempts do not count.
            **options: See `SubmitOptions`: `model`, `version` (number or alias), `worker` and others.

        Returns:
            The job: `outputs` as JSON has them, `to_numpy()`, `to_frame()`, and which version answered.

        Raises:
            InputError: The samples do not fit the version's input, or cannot be sent.
            TooLargeError: A single sample is larger than a request may be.
            UnauthenticatedError: The API key is missing or invalid.
            NotFoundError: No such worker number, model, version or alias.
            QueueFullError: The queue is full after all attempts.
            UnavailableError: No candidate, no Redis or no controller after all attempts.
            JobUnsuccessfulError: The job failed, expired or was cancelled.
            WaitTimeoutError: The job has no outcome yet; it continues.
            OutputsNotJoinableError: The samples were cut, and the version does not answer a row for each row.
            ConfigurationError: Reading the samples needs a package that is not installed.
        """
        return self._run(calls.predict(samples, params, wait_s, options, self._limits))

    def submit(
        self, samples: Samples, *, params: Params | None = None, **options: Unpack[SubmitOptions]
    ) -> Job:
        """Submit samples and return when the job is accepted; until then it raises the same errors as `predict`.

        Returns:
            The job without its outcome: give it to `wait`. Samples that were cut are a `JoinedJob`.
        """
        return self._run(calls.submit(samples, params, options, self._limits))

    def map(
        self,
        inputs: Iterable[Samples],
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        concurrency: int = 8,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> Iterator[Job]:
        """Predict each of many inputs, several at a time; the jobs come in the order of the inputs.

        Inputs are taken when they are needed, so they may be more than fit into memory. The first error ends the
        iteration; its notes name the input.

        Args:
            inputs: What `predict` takes, once for each job: a list, a generator, or an array of samples.
            params: See `predict`, also for `wait_s` and the options.
            wait_s: Seconds to wait for each outcome.
            concurrency: Requests at the same time.
            progress: Whether to show a progress bar, which needs tqdm.
            **options: See `SubmitOptions`.

        Raises:
            ModelyardError: As `predict`.
            ParameterError: `concurrency` is less than 1.
            ConfigurationError: tqdm is not installed.
        """
        call = partial(self.predict, params=params, wait_s=wait_s, **options)
        for _, job in run_all(call, inputs, concurrency, ordered=True, progress=progress):
            yield job

    def map_unordered(
        self,
        inputs: Iterable[Samples],
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        concurrency: int = 8,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> Iterator[tuple[int, Job]]:
        """The same as `map`, but each job comes as soon as it is done, with the place of its input from 0."""
        call = partial(self.predict, params=params, wait_s=wait_s, **options)
        return run_all(call, inputs, concurrency, ordered=False, progress=progress)

    def batch(
        self,
        source: str | Path,
        output: str | Path,
        *,
        params: Params | None = None,
        wait_s: float = math.inf,
        **options: Unpack[BatchOptions],
    ) -> BatchFile:
        """Send a file, have the controller predict its rows, and write a row for each of them, in order.

        The controller needs `MODELYARD_BATCH_FOLDER`. It goes on if it is restarted, and if this client has left.

        Args:
            source: A file .csv, .ndjson, .jsonl, .parquet, .npy or .npz, or a .zip of images.
            output: File to write: .csv, .ndjson, .jsonl or .parquet. Rows without a prediction are in its name with
                .bad.ndjson, with their reasons.
            params: Parameters of the version.
            wait_s: Seconds to wait.
            **options: See `BatchOptions`.

        Raises:
            ConfigurationError: A file is of an unknown kind.
            BatchesOffError: The controller takes no files.
            TooLargeError: The file is larger than it may be.
            NotFoundError: No such worker number, model, version or endpoint.
            BatchUnsuccessfulError: It failed, was cancelled, or has not ended yet.
        """
        return self._run(calls.batch(Path(source), Path(output), params, wait_s, options))

    def submit_batch(
        self,
        source: str | Path,
        *,
        output: str | None = None,
        params: Params | None = None,
        **options: Unpack[BatchOptions],
    ) -> BatchFile:
        """Send a file and return when it has arrived; see `batch`.

        Args:
            output: Format of the output: `csv`, `ndjson` or `parquet`; default: that of the file, or `ndjson`.
        """
        return self._send(calls.post_batch(Path(source), output, params, options))

    def read_batch(self, batch: BatchFile | str, wait_s: float = 0.0) -> BatchFile:
        """Read how far a batch has come, and wait up to `wait_s` seconds, at most 60, for its end.

        Raises:
            UnknownBatchError: No batch has this id.
        """
        return self._send(calls.batch_state(batch, wait_s))

    def list_batches(self, limit: int = 100) -> tuple[BatchFile, ...]:
        """List the batches of this API key, or of all keys for an operator's, newest first."""
        return self._send(calls.batch_list(limit)).batches

    def cancel_batch(self, batch: BatchFile | str) -> BatchFile:
        """Cancel a batch.

        Raises:
            UnknownBatchError: No batch has this id.
            BatchNotCancellableError: It has ended.
        """
        return self._send(calls.cancelled_batch(batch))

    def save_batch(self, batch: BatchFile | str, output: str | Path, *, errors: bool = False) -> None:
        """Write the output of a batch that succeeded to a file.

        Args:
            errors: Whether to write the rows without a prediction instead.

        Raises:
            UnknownBatchError: No batch has this id.
            BatchWithoutOutputError: It has not succeeded.
        """
        self._send(calls.saved(batch, "errors" if errors else "output", Path(output)))

    def wait(self, job: Job | str, timeout_s: float = 60.0) -> Job:
        """Wait until a job has succeeded.

        Args:
            job: The job or its id.
            timeout_s: Seconds to wait.

        Raises:
            UnknownJobError: No job has this id.
            JobGoneError: Its outcome was kept for its time and is no longer.
            JobUnsuccessfulError: It failed, expired or was cancelled.
            WaitTimeoutError: It has no outcome yet; it continues.
        """
        return self._run(calls.wait(job, timeout_s))

    def result(self, job: Job | str) -> Job:
        """Read a job, or the job with an id, in any state.

        Raises:
            UnknownJobError: No job has this id.
            JobGoneError: Its outcome was kept for its time and is no longer.
        """
        return self._run(calls.read(job))

    def explain(self, job: Job | str) -> Job:
        """Read a job, or the job with an id, with its `route`: why it went to its version.

        Raises:
            UnknownJobError: No job has this id.
            JobGoneError: Its outcome was kept for its time and is no longer.
        """
        return self._send(calls.explained(job))

    def route(self, **options: Unpack[RouteOptions]) -> RoutePlan:
        """Ask where a request would go now, and why; nothing is sent.

        Raises:
            NotFoundError: No such worker number, model, version or endpoint.
            InputError: Several endpoints are served, and the options name none.
            UnavailableError: No worker is ready.
        """
        return self._send(calls.route(options))

    def jobs(self, jobs: Iterable[Job | str], wait_s: float = 0.0) -> list[Job | ModelyardError]:
        """Read many jobs, in their order and in any state: up to 200 of them in one request.

        Args:
            jobs: Jobs or their ids.
            wait_s: Seconds to wait until all have their outcomes.

        Returns:
            For each the job, or in its place the error that `result` would raise.
        """
        return self._run(calls.read_all(jobs, wait_s))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job, or the job with an id, that has not run.

        Raises:
            UnknownJobError: No job has this id.
            JobNotCancellableError: It is running or has an outcome already.
        """
        return self._run(calls.cancel(job))

    def list_jobs(self, **wanted: Unpack[JobFilter]) -> JobList:
        """Read one page of the list of jobs: open ones, oldest first, or recently finished ones, newest first.

        Raises:
            ForbiddenError: The API key is not an operator's.
            ParameterError: A filter is out of range.
        """
        return self._send(calls.job_list(wanted))

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Read the pool: model version, workers and backlog of each worker number.

        Raises:
            ForbiddenError: The API key is not an operator's.
        """
        return self._send(calls.workers()).workers

    def control(
        self,
        action: str,
        model: str,
        version: int | None = None,
        *,
        reason: str = "",
        reroute: bool = False,
        dry_run: bool = False,
    ) -> VersionControl:
        """Take a version out of service, or put it back.

        Args:
            action: `disable`, `enable`, `retire`, `pin` or `forget`; or `unpin`, without a version.
            reason: Why, for the log of decisions.
            reroute: With `retire`: whether the next version of its endpoint gets the jobs that wait.
            dry_run: Whether to check it only, and change nothing.

        Raises:
            ForbiddenError: The API key is not an operator's.
            UnknownModelError: The pool has never served the version.
            VersionInUseError: A version to be forgotten has workers or jobs.
        """
        return self._send(calls.control(action, model, version, reason, reroute, dry_run))

    def scale(
        self, model: str, version: int, replicas: int | None, *, reason: str = "", dry_run: bool = False
    ) -> VersionControl:
        """Set the number of a version's workers, which `modelyard up` starts and stops.

        Args:
            replicas: None for the number that modelyard.toml says.
            reason: Why, for the log of decisions.
            dry_run: Whether to check it only, and change nothing.

        Raises:
            ForbiddenError: The API key is not an operator's.
            UnknownModelError: The pool has never served the version.
            NotScalableError: No worker of the version runs under `modelyard up`.
        """
        return self._send(calls.scale(model, version, replicas, reason, dry_run))

    def decisions(self, limit: int = 100) -> tuple[Decision, ...]:
        """Read what operators and circuit breakers decided about versions, newest first."""
        return self._send(calls.decisions(limit)).decisions

    def ready(self) -> Readiness:
        """Ask whether the controller can accept jobs, and why not."""
        return self._send(calls.ready())

    def _run(self, flow: Flow[T]) -> T:
        resume: Callable[[], Call[Any]] = partial(next, flow)
        while True:
            try:
                call = resume()
            except StopIteration as stop:
                outcome: T = stop.value
                return outcome
            try:
                resume = partial(flow.send, self._send(call))
            except ModelyardError as error:
                resume = partial(flow.throw, error)

    def _send(self, call: Call[T]) -> T:
        attempt = 1
        while True:
            try:
                return self._send_once(call)
            except ModelyardError as error:
                pause_s = self._retry.pause_s(attempt, error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    def _send_once(self, call: Call[T]) -> T:
        with _transport_errors(self._http.base_url):
            if call.saved_to:
                return _save(self._http, call, call.saved_to)
            content = call.body if call.upload is None else _parts(call.upload)
            response = self._http.request(call.method, call.path, content=content, **_arguments(call))
        return call.read(response.status_code, response.headers, response.content)


class AsyncClient:
    """Asynchronous client of a controller. Its methods have the arguments, results and errors of those of `Client`.

    Args:
        url: Address of the controller; default: the environment variable MODELYARD_URL, else http://127.0.0.1:9000.
        api_key: Key to send; default: the environment variable MODELYARD_API_KEY, if it is set.
        retry: The retry policy.
        transport: Transport to use instead of the network.

    Raises:
        ConfigurationError: The URL is invalid, or the key contains characters that cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._limits = Limits()
        self._connect = partial(_opened, httpx.AsyncClient, **_connection(url, api_key), transport=transport)
        self._by_loop: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self._http().aclose()

    async def predict(
        self,
        samples: Samples,
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """Submit samples and wait until the job has succeeded; see `Client.predict`."""
        return await self._run(calls.predict(samples, params, wait_s, options, self._limits))

    async def submit(
        self, samples: Samples, *, params: Params | None = None, **options: Unpack[SubmitOptions]
    ) -> Job:
        """Submit samples and return as soon as the job is accepted; see `Client.submit`."""
        return await self._run(calls.submit(samples, params, options, self._limits))

    async def map(
        self,
        inputs: Iterable[Samples] | AsyncIterable[Samples],
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        concurrency: int = 8,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> AsyncIterator[Job]:
        """Predict each of many inputs, with jobs in the order of the inputs; see `Client.map`."""
        call = partial(self.predict, params=params, wait_s=wait_s, **options)
        jobs = run_all_async(call, inputs, concurrency, ordered=True, progress=progress)
        async with aclosing(jobs):
            async for _, job in jobs:
                yield job

    async def map_unordered(
        self,
        inputs: Iterable[Samples] | AsyncIterable[Samples],
        *,
        params: Params | None = None,
        wait_s: float = 30.0,
        concurrency: int = 8,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> AsyncIterator[tuple[int, Job]]:
        """The same with each job as soon as it is done; see `Client.map_unordered`."""
        call = partial(self.predict, params=params, wait_s=wait_s, **options)
        jobs = run_all_async(call, inputs, concurrency, ordered=False, progress=progress)
        async with aclosing(jobs):
            async for numbered in jobs:
                yield numbered

    async def batch(
        self,
        source: str | Path,
        output: str | Path,
        *,
        params: Params | None = None,
        wait_s: float = math.inf,
        **options: Unpack[BatchOptions],
    ) -> BatchFile:
        """Have the controller predict the rows of a file into another one; see `Client.batch`."""
        return await self._run(calls.batch(Path(source), Path(output), params, wait_s, options))

    async def submit_batch(
        self,
        source: str | Path,
        *,
        output: str | None = None,
        params: Params | None = None,
        **options: Unpack[BatchOptions],
    ) -> BatchFile:
        """Send a file and return when it has arrived; see `Client.submit_batch`."""
        return await self._send(calls.post_batch(Path(source), output, params, options))

    async def read_batch(self, batch: BatchFile | str, wait_s: float = 0.0) -> BatchFile:
        """Read how far a batch has come; see `Client.read_batch`."""
        return await self._send(calls.batch_state(batch, wait_s))

    async def list_batches(self, limit: int = 100) -> tuple[BatchFile, ...]:
        """List batches, newest first; see `Client.list_batches`."""
        return (await self._send(calls.batch_list(limit))).batches

    async def cancel_batch(self, batch: BatchFile | str) -> BatchFile:
        """Cancel a batch; see `Client.cancel_batch`."""
        return await self._send(calls.cancelled_batch(batch))

    async def save_batch(self, batch: BatchFile | str, output: str | Path, *, errors: bool = False) -> None:
        """Write the output of a batch that succeeded to a file; see `Client.save_batch`."""
        await self._send(calls.saved(batch, "errors" if errors else "output", Path(output)))

    async def wait(self, job: Job | str, timeout_s: float = 60.0) -> Job:
        """Wait until a job has succeeded; see `Client.wait`."""
        return await self._run(calls.wait(job, timeout_s))

    async def result(self, job: Job | str) -> Job:
        """Read a job in whatever state it is; see `Client.result`."""
        return await self._run(calls.read(job))

    async def explain(self, job: Job | str) -> Job:
        """Read a job with its `route`; see `Client.explain`."""
        return await self._send(calls.explained(job))

    async def route(self, **options: Unpack[RouteOptions]) -> RoutePlan:
        """Ask where a request would go now, and why; see `Client.route`."""
        return await self._send(calls.route(options))

    async def jobs(self, jobs: Iterable[Job | str], wait_s: float = 0.0) -> list[Job | ModelyardError]:
        """Read many jobs, in their order and in any state; see `Client.jobs`."""
        return await self._run(calls.read_all(jobs, wait_s))

    async def cancel(self, job: Job | str) -> Job:
        """Cancel a job that has not run; see `Client.cancel`."""
        return await self._run(calls.cancel(job))

    async def list_jobs(self, **wanted: Unpack[JobFilter]) -> JobList:
        """Read one page of the list of jobs; see `Client.list_jobs`."""
        return await self._send(calls.job_list(wanted))

    async def workers(self) -> tuple[WorkerInfo, ...]:
        """Read the pool; see `Client.workers`."""
        return (await self._send(calls.workers())).workers

    async def control(
        self,
        action: str,
        model: str,
        version: int | None = None,
        *,
        reason: str = "",
        reroute: bool = False,
        dry_run: bool = False,
    ) -> VersionControl:
        """Take a version out of service, or put it back; see `Client.control`."""
        return await self._send(calls.control(action, model, version, reason, reroute, dry_run))

    async def scale(
        self, model: str, version: int, replicas: int | None, *, reason: str = "", dry_run: bool = False
    ) -> VersionControl:
        """Set the number of a version's workers; see `Client.scale`."""
        return await self._send(calls.scale(model, version, replicas, reason, dry_run))

    async def decisions(self, limit: int = 100) -> tuple[Decision, ...]:
        """Read what was decided about versions, newest first."""
        return (await self._send(calls.decisions(limit))).decisions

    async def ready(self) -> Readiness:
        """Ask whether the controller can accept jobs, and why not."""
        return await self._send(calls.ready())

    def _http(self) -> httpx.AsyncClient:
        """The connections of the running event loop; no other loop can use them."""
        loop = asyncio.get_running_loop()
        http = self._by_loop.get(loop)
        if http is None:
            http = self._connect()
            open_ones = {each: of for each, of in self._by_loop.items() if not each.is_closed()}
            self._by_loop = open_ones | {loop: http}
        return http

    async def _run(self, flow: Flow[T]) -> T:
        resume: Callable[[], Call[Any]] = partial(next, flow)
        while True:
            try:
                call = resume()
            except StopIteration as stop:
                outcome: T = stop.value
                return outcome
            try:
                resume = partial(flow.send, await self._send(call))
            except ModelyardError as error:
                resume = partial(flow.throw, error)

    async def _send(self, call: Call[T]) -> T:
        attempt = 1
        while True:
            try:
                return await self._send_once(call)
            except ModelyardError as error:
                pause_s = self._retry.pause_s(attempt, error)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
            attempt += 1

    async def _send_once(self, call: Call[T]) -> T:
        http = self._http()
        with _transport_errors(http.base_url):
            if call.saved_to:
                return await _save_async(http, call, call.saved_to)
            content = call.body if call.upload is None else _parts_async(call.upload)
            response = await http.request(call.method, call.path, content=content, **_arguments(call))
        return call.read(response.status_code, response.headers, response.content)


def _opened(kind: Callable[..., Http], **connection: Any) -> Http:
    try:
        return kind(**connection)
    except (ValueError, ImportError) as error:  # httpx reads the variables of proxies here
        raise ConfigurationError(
            f"the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}; set it right, or except the "
            "controller's host by NO_PROXY"
        ) from None


def _connection(url: str | None, api_key: str | None) -> dict[str, Any]:
    """Arguments for both httpx clients."""
    url = str(url if url is not None else os.environ.get("MODELYARD_URL") or DEFAULT_URL).strip()
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{url!r} is no URL: {error}; give one such as {DEFAULT_URL}") from None
    if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
        raise ConfigurationError(f"{url!r} is no http(s) URL of a controller; give one such as {DEFAULT_URL}")
    return {
        "base_url": base,
        "headers": _authorization(api_key),
        # Creating a TLS context can take longer than a prediction; redirects, which could need one, are refused.
        "verify": base.scheme == "https" and httpx.create_ssl_context(),
        "limits": httpx.Limits(max_connections=None),
        # A configured proxy cannot reach this machine's loopback address.
        "trust_env": base.host not in LOOPBACK_HOSTS,
    }


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (os.environ.get("MODELYARD_API_KEY", "") if api_key is None else api_key).strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigurationError(
            "the API key holds characters that none has; is MODELYARD_API_KEY set right?"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _arguments(call: Call[Any]) -> dict[str, Any]:
    """Arguments of one httpx request."""
    return {
        "params": dict(call.query),
        "headers": dict(call.headers),
        "timeout": httpx.Timeout(call.wait_s + ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    }


def _save(http: httpx.Client, call: Call[T], path: Path) -> T:
    with http.stream(call.method, call.path, **_arguments(call)) as response:
        if not response.is_success:
            return call.read(response.status_code, response.headers, response.read())
        with _whole(path) as file:
            for part in response.iter_bytes(FILE_PART_BYTES):
                file.write(part)
    return call.read(HTTPStatus.OK, response.headers, b"null")


async def _save_async(http: httpx.AsyncClient, call: Call[T], path: Path) -> T:
    async with http.stream(call.method, call.path, **_arguments(call)) as response:
        if not response.is_success:
            return call.read(response.status_code, response.headers, await response.aread())
        with _whole(path) as file:
            async for part in response.aiter_bytes(FILE_PART_BYTES):
                await asyncio.to_thread(file.write, part)
    return call.read(HTTPStatus.OK, response.headers, b"null")


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(FILE_PART_BYTES):
            yield part


async def _parts_async(path: Path) -> AsyncIterator[bytes]:
    for part in _parts(path):
        yield part
        await asyncio.sleep(0)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when it is complete."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _has_proxy(url: httpx.URL) -> bool:
    has_one = not {url.scheme, "all"}.isdisjoint(getproxies())
    return has_one and url.host not in LOOPBACK_HOSTS and not proxy_bypass(url.host)


def _remedy(url: httpx.URL, error: httpx.TransportError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "SSL_CERT_FILE names the file with the certificates of other authorities"
    proxy = ", and does the proxy of the environment reach it" if _has_proxy(url) else ""
    return f"is the controller running there{proxy}?"


@contextmanager
def _transport_errors(url: httpx.URL) -> Iterator[None]:
    """Map every error of httpx to an error of `modelyard.errors`."""
    try:
        yield
    except httpx.TransportError as error:
        raise ControllerUnreachableError(
            f"no answer from {url}: {str(error) or type(error).__name__}; {_remedy(url, error)}"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AnswerUnreadableError(f"cannot read what {url} answers: {error}") from error
