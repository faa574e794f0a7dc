"""`POST /predict`, the hot route: plain ASGI in front of the FastAPI application, which documents it.

Read, decode, route, submit, wait, answer: each step is a call into the file that knows it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from app.clock import PoolClock
from app.errors import (
    DrainingError,
    InputError,
    ModelyardError,
    ParameterError,
    TooLargeError,
    UnauthenticatedError,
)
from app.ledger import ids
from app.settings import ControllerSettings
from controller.admission.audit_log import Audit, Client
from controller.admission.authentication import Access, Caller
from controller.admission.idempotency import Idempotency, Reservation
from controller.admission.rate_limit import RateLimit
from controller.admission.wait_estimate import Backlogs
from controller.dispatch import Dispatcher, Job
from controller.http.draining import Drain
from controller.http.job_json import job_json, result_url
from controller.http.problems import problem
from controller.http.response_headers import API, CLOSE, Headers
from controller.input import bodies
from controller.input.content_coding import IDENTITY, check_coding, unpack
from controller.input.job_samples import Samples, read_samples
from controller.input.large_bodies import LARGE_BYTES, LargeBodies
from controller.metrics import Metrics
from controller.pool_watcher import PoolWatcher
from controller.results import Results
from controller.routing import Route, Selector, Snapshot, foreseen

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = (b"content-type", bodies.JSON)
PARAMETERS = frozenset({"worker", "model", "version", "wait", "deadline"})
MAX_QUERY_BYTES = 2048  # a thousand are remembered
EXPIRY_POLL_S = 0.2  # Redis's clock, which decides, may be a little behind this process's


@dataclass(frozen=True, slots=True)
class Query:
    """The query string; None where it does not say."""

    selector: Selector
    wait_s: float | None
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's head asks for, its defaults filled in. The same head asks for the same.

    Attributes:
        authorization: The header, empty where there is none.
        content_type: Of its body.
    """

    selector: Selector
    wait_s: float
    deadline_s: float
    authorization: bytes
    content_type: bytes


class Request(msgspec.Struct, frozen=True):
    """A request whose body is still to be looked at.

    Attributes:
        caller: Who asks.
        received_at_ms: When it arrived, Redis's clock.
    """

    asked: Asked
    caller: Caller
    received_at_ms: float


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer."""

    status: int
    headers: Headers
    body: bytes


class Predict:
    """The endpoint.

    Args:
        settings: Limits and defaults.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        access: Access,
        audit: Audit,
        rate_limit: RateLimit | None,
        watcher: PoolWatcher,
        backlogs: Backlogs,
        dispatcher: Dispatcher,
        results: Results,
        idempotency: Idempotency,
        large_bodies: LargeBodies,
        metrics: Metrics,
        clock: PoolClock,
        drain: Drain,
    ) -> None:
        self._settings = settings
        self._prefix = settings.prefix
        self._access = access
        self._audit = audit
        self._rate_limit = rate_limit
        self._watcher = watcher
        self._backlogs = backlogs
        self._dispatcher = dispatcher
        self._results = results
        self._idempotency = idempotency
        self._large_bodies = large_bodies
        self._metrics = metrics
        self._clock = clock
        self._drain = drain
        self._look_ups: set[asyncio.Task[None]] = set()

    @property
    def is_rate_limited(self) -> bool:
        """Whether clients may ask only so often."""
        return self._rate_limit is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = await self.respond(scope, receive)
        length = (b"content-length", str(len(reply.body)).encode())
        headers = [*reply.headers, *API, length]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def respond(self, scope: Scope, receive: Receive) -> Reply:
        """The answer to one request; errors become problem documents."""
        try:
            return await self._respond(scope, receive)
        except Exception as error:
            return self._refusal(error, scope.get("client"))

    def answer(
        self,
        headers: Headers,
        query_string: bytes,
        body: bytes,
        client: Client,
        done: Callable[[Reply], None],
    ) -> Asked | None:
        """The same for a request that is there whole, without a task: `done` is called with its answer.

        Not where there is a rate limit, which has to ask Redis.

        Returns:
            What the head asks for, for `answer_alike`; None where it was refused.
        """
        assert not self.is_rate_limited
        try:
            request = self._read_head(dict(headers), query_string)
        except Exception as error:
            done(self._refusal(error, client))
            return None
        self._answer(request, body, done)
        return request.asked

    def answer_alike(self, asked: Asked, body: bytes, client: Client, done: Callable[[Reply], None]) -> None:
        """Answer a request with a head that `answer` has read before."""
        try:
            request = self._receive(asked)
        except Exception as error:
            done(self._refusal(error, client))
        else:
            self._answer(request, body, done)

    def _answer(self, request: Request, body: bytes, done: Callable[[Reply], None]) -> None:
        wait_s = request.asked.wait_s

        def settled(job: Job) -> None:
            try:
                reply = self._reply(job, wait_s)
            except Exception as error:
                reply = self._refusal(error)
            done(reply)

        try:
            self._check_size(len(body))
            job = self._new_job(request, body, settled)
        except Exception as error:
            done(self._refusal(error))
        else:
            self._start(job, wait_s)

    def end_waits(self) -> None:
        """Answer whoever waits for an outcome: with where to read it, as the controller is stopping."""
        self._drain.is_over = True
        for job in self._dispatcher.jobs():
            job.stop_waiting()

    def _refusal(self, error: Exception, client: Client = None) -> Reply:
        if not isinstance(error, ModelyardError):
            logger.error("unforeseen error", exc_info=error)
            error = ModelyardError("an unforeseen error; the controller's log has it")
        self._metrics.rejected(error.code)
        if isinstance(error, UnauthenticatedError):
            self._audit.refuse("request", error, client, method="POST", path="/predict")
        status, headers, body = problem(error)
        if isinstance(error, TooLargeError):
            headers.append(CLOSE)  # the rest of the body is not read
        return Reply(status, headers, body)

    async def _respond(self, scope: Scope, receive: Receive) -> Reply:
        headers = dict(scope["headers"])
        request = self._read_head(headers, scope["query_string"])
        if self._rate_limit:
            self._rate_limit.check(request.caller, scope)
        body = await self._read(headers, receive)
        coding = headers.get(b"content-encoding", b"")
        if coding not in IDENTITY:
            body = await asyncio.to_thread(unpack, coding, body, self._settings.max_body_bytes)
        key = headers.get(b"idempotency-key")
        if key is None:
            return await self._submit(request, body, scope)
        return await self._submit_once(key, request, body, scope)

    def _receive(self, asked: Asked) -> Request:
        received_at_ms = self._clock.now_ms()
        self._check_open()
        return Request(asked, self._access.caller(asked.authorization), received_at_ms)

    def _read_head(self, headers: Mapping[bytes, bytes], query_string: bytes) -> Request:
        received_at_ms = self._clock.now_ms()
        self._check_open()
        authorization = headers.get(b"authorization", b"")
        caller = self._access.caller(authorization)
        query = parse_query(query_string)
        wait_s = self._wait_s(query, headers.get(b"prefer"))
        deadline_s = self._deadline_s(query)
        check_coding(headers.get(b"content-encoding", b""))
        content_type = headers.get(b"content-type", bodies.JSON)
        asked = Asked(query.selector, wait_s, deadline_s, authorization, content_type)
        return Request(asked, caller, received_at_ms)

    def _check_open(self) -> None:
        if self._drain.has_begun:
            raise DrainingError(
                "this controller is stopping; send to another, or again shortly", retry_after_s=1
            )

    async def _submit_once(self, key: bytes, request: Request, body: bytes, scope: Scope) -> Reply:
        # Before anything that may refuse: a repeated post gets its job even where a new one could not be taken.
        # A large body is digested in a thread, as that releases Python's global lock.
        asked = request.asked
        parts = (repr((asked.selector, asked.deadline_s)).encode(), body)
        entry = partial(self._idempotency.entry, key, parts, request.caller.name)
        once = entry() if len(body) < LARGE_BYTES else await asyncio.to_thread(entry)
        first = await self._idempotency.reserve(once)
        if first:
            return await self._repeat(first, request)
        try:
            return await self._submit(request, body, scope, once)
        except Exception:
            await self._idempotency.release(once)
            raise

    def _new_job(self, request: Request, body: bytes, on_settled: Callable[[Job], None]) -> Job:
        asked = request.asked
        snapshot = self._watcher.view.snapshot
        certain = self._admit_foreseen(request, snapshot)
        samples = read_samples(
            asked.content_type, body, snapshot, asked.selector, certain, self._settings.max_samples
        )
        return self._job_of(samples, request, certain, on_settled)

    async def _new_large_job(self, request: Request, body: bytes, on_settled: Callable[[Job], None]) -> Job:
        asked = request.asked
        snapshot = self._watcher.view.snapshot
        certain = self._admit_foreseen(request, snapshot)
        samples = await self._large_bodies.read(
            asked.content_type, body, snapshot, asked.selector, certain, self._settings.max_samples
        )
        return self._job_of(samples, request, certain, on_settled)

    def _admit_foreseen(self, request: Request, snapshot: Snapshot) -> Route | None:
        asked = request.asked
        # Before the body is looked at, where that is possible: under overload most of the work is to refuse.
        certain = foreseen(snapshot, asked.selector)
        if certain:
            self._backlogs.admit(certain.candidate.queue, asked.deadline_s, request.caller.name)
        return certain

    def _job_of(
        self, samples: Samples, request: Request, certain: Route | None, on_settled: Callable[[Job], None]
    ) -> Job:
        asked = request.asked
        if certain is None:
            self._backlogs.admit(samples.route.candidate.queue, asked.deadline_s, request.caller.name)
        return Job(
            route=samples.route,
            data=samples.data,
            n_samples=samples.n_samples,
            received_at_ms=request.received_at_ms,
            deadline_ms=request.received_at_ms + asked.deadline_s * 1000,
            wants_outcome=asked.wait_s > 0,
            waits_until_s=time.monotonic() + asked.wait_s,
            on_settled=on_settled,
            owner=request.caller.name,
        )

    async def _submit(
        self, request: Request, body: bytes, scope: Scope, once: Reservation | None = None
    ) -> Reply:
        settled = asyncio.Event()
        try:
            if len(body) < LARGE_BYTES:
                job = self._new_job(request, body, lambda _: settled.set())
            else:
                job = await self._new_large_job(request, body, lambda _: settled.set())
        except (InputError, TooLargeError):
            if self._rate_limit:  # it has cost as much as a prediction
                await self._rate_limit.count(request.caller, scope, 1)
            raise
        if self._rate_limit:
            await self._rate_limit.count(request.caller, scope, job.n_samples)
        job.once = once
        self._start(job, request.asked.wait_s)
        await settled.wait()
        return self._reply(job, request.asked.wait_s)

    def _start(self, job: Job, wait_s: float) -> None:
        self._dispatcher.submit(job)
        lives_ms = job.deadline_ms - job.received_at_ms
        if lives_ms < wait_s * 1000 and not job.is_settled:
            asyncio.get_running_loop().call_later(lives_ms / 1000, self._at_deadline, job)

    def _reply(self, job: Job, wait_s: float) -> Reply:
        if job.error:
            raise job.error
        batch = job.batch
        assert batch is not None
        if batch.outcome and wait_s > 0:
            own = batch.outcome.jobs[job.index]
            return Reply(200, [JSON], batch.json.job(job.index, own.status, batch.outcome))
        if job.expired:
            return Reply(200, [JSON], batch.json.job(job.index, "expired", None))
        job_id = ids.job_id(batch.batch_id, job.index)
        if self._drain.is_over and wait_s > 0:
            return self._interrupted(job_id)
        location = (b"location", result_url(job_id, self._prefix).encode())
        return Reply(202, [JSON, location], batch.json.job(job.index, "queued", None))

    def _interrupted(self, job_id: str) -> Reply:
        error = DrainingError(
            "this controller is stopping before the outcome came; the job goes on: read it at its result_url",
            retry_after_s=1,
        )
        self._metrics.rejected(error.code)
        url = result_url(job_id, self._prefix)
        status, headers, body = problem(error, id=job_id, result_url=url)
        return Reply(status, [*headers, (b"location", url.encode())], body)

    def _at_deadline(self, job: Job) -> None:
        """Tell a caller that still waits if no worker took the job in time, before its batch is closed."""
        if job.accepted and not job.is_settled:
            look_up = asyncio.create_task(self._see_whether_expired(job))
            self._look_ups.add(look_up)
            look_up.add_done_callback(self._look_ups.discard)

    async def _see_whether_expired(self, job: Job) -> None:
        assert job.batch
        with suppress(ModelyardError):  # then the caller goes on waiting
            job_id, owner = ids.job_id(job.batch.batch_id, job.index), Caller(job.owner, is_operator=False)
            view = await self._results.job(job_id, owner, EXPIRY_POLL_S)
            if view.status == "expired":
                job.expired = True
                job.settle()

    async def _repeat(self, first_job_id: str, request: Request) -> Reply:
        wait_s = request.asked.wait_s
        view = await self._results.job(first_job_id, request.caller, wait_s)
        done = view.outcome is not None and wait_s > 0
        if self._drain.is_over and wait_s > 0 and not done:
            return self._interrupted(first_job_id)
        location: Headers = [] if done else [(b"location", result_url(first_job_id, self._prefix).encode())]
        body = job_json(view.ref, view.head, view.status, view.outcome if done else None, self._prefix)
        return Reply(200 if done else 202, [JSON, *location], body)

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        self._check_size(int(headers.get(b"content-length", b"0")))
        message = await receive()
        if not message.get("more_body"):
            body: bytes = message.get("body", b"")
            self._check_size(len(body))
            return body
        chunks, size = [message["body"]], len(message["body"])
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InputError("the connection was closed before the body was whole")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            self._check_size(size)
        return b"".join(chunks)

    def _check_size(self, body_bytes: int) -> None:
        limit = self._settings.max_body_bytes
        if body_bytes > limit:
            raise TooLargeError(f"the body is larger than {limit} bytes; send fewer samples at a time")

    def _wait_s(self, query: Query, prefer: bytes | None) -> float:
        if query.wait_s is not None:
            return in_range("wait", query.wait_s, 0, self._settings.max_wait_s)
        # RFC 7240, section 2: a preference that cannot be met is no error.
        return min(_preferred_wait_s(prefer), self._settings.max_wait_s) if prefer else 0.0

    def _deadline_s(self, query: Query) -> float:
        deadline_s = query.deadline_s
        if deadline_s is None:
            return self._settings.default_deadline_s
        return in_range("deadline", deadline_s, 0.001, self._settings.max_deadline_s)


def in_range(name: str, value: float, low: float, high: float) -> float:
    """The value, if it is a number of seconds from `low` to `high`.

    Raises:
        ParameterError: It is not.
    """
    if not low <= value <= high:  # NaN compares false
        raise ParameterError(f"{name} must be a number of seconds from {low:g} to {high:g}")
    return value


@lru_cache(maxsize=1024)
def parse_query(query_string: bytes) -> Query:
    """Read the query string of a prediction.

    Raises:
        ParameterError: It is too long, or a parameter is unknown, repeated or malformed.
    """
    if len(query_string) > MAX_QUERY_BYTES:
        raise ParameterError(f"the query string is longer than {MAX_QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise ParameterError("the query string is malformed") from None
    given = dict(pairs)
    if len(given) != len(pairs) or not given.keys() <= PARAMETERS:
        raise ParameterError(
            f"expected at most one each of the query parameters {', '.join(sorted(PARAMETERS))}, and no others"
        )
    return Query(
        Selector(_positive(given, "worker"), given.get("model"), _positive(given, "version")),
        _seconds(given, "wait"),
        _seconds(given, "deadline"),
    )


def _positive(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise ParameterError(f"{name} must be a whole number from 1")
    return int(text)


def _seconds(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise ParameterError(f"{name} must be a number of seconds, such as 5 or 0.5")
    return float(text)


def _preferred_wait_s(prefer: bytes) -> float:
    # RFC 7240: an unknown or malformed preference is ignored; the first of two equal names counts. As in its
    # section 4.3, `respond-async` beside `wait` leaves the wait as it is: afterwards the answer is 202 anyway.
    for preference in prefer.split(b","):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip().lower() == b"wait" and value.strip(b' "').isdigit():
            return float(value.strip(b' "'))
    return 0.0
