"""The handler of predictions: admit, route, decode, submit, wait, reply. Each step has its own module.

It answers `POST /predict`, and `/invocations` as MLflow does (`http/invocations`). Two adapters send its replies:
`http/connection` for a plain request that arrived completely, `http/asgi` for all other requests. The Open Inference
Protocol (`http/open_inference`) and probes wait for the job itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec

from app import tracing
from app.clock import PoolClock
from app.ledger import ids
from app.ledger.wire import JobEntry
from app.server_errors import DrainingError, InputError, ModelyardError, TooLargeError
from app.settings import ControllerSettings
from controller.admission.audit_log import Client
from controller.admission.authentication import Caller
from controller.admission.gate import Gate, HeaderList
from controller.admission.idempotency import Idempotency, Reservation
from controller.admission.rate_limit import RateLimit
from controller.admission.wait_estimate import Backlogs
from controller.configured_endpoints import ConfiguredEndpoints
from controller.dispatch import Dispatcher
from controller.endpoints import Route
from controller.http import invocations
from controller.http.draining import Drain
from controller.http.job_json import job_json, result_url
from controller.http.prediction_request import PREDICT, Address, Asked, read_head
from controller.http.replies import JSON, Refusals, Reply
from controller.http.response_headers import Headers
from controller.input.job_samples import NeedsReader, Samples, read_samples
from controller.input.large_bodies import LargeBodies, is_large
from controller.jobs import Job
from controller.pool_watcher import PoolWatcher
from controller.results import Results
from controller.routing import routes
from modelyard.schemas import FINAL_STATUSES

DECODED_TIMES = 4  # by how much a table or an image may grow: as much as JSON numbers grow as float64
EXPIRY_POLL_S = 0.2  # Redis's clock is authoritative and may lag behind this process's clock


class Request(msgspec.Struct, frozen=True):
    """An admitted request whose body has not been read yet.

    Attributes:
        caller: The authenticated caller.
        received_at_ms: Arrival time, Redis's clock.
    """

    asked: Asked
    caller: Caller
    client: Client
    received_at_ms: float


class Addressee(Protocol):
    """The receiver of the reply to a prediction."""

    def answer(self, reply: Reply) -> None:
        """Send the reply. Called exactly once."""


class Exchange(msgspec.Struct):
    """A submitted prediction and the receiver of its reply."""

    predict: Predict
    asked: Asked
    to: Addressee

    def answer(self, job: Job) -> None:
        """Send the reply to the caller of a job; errors become replies."""
        try:
            reply = self.predict.reply(job, self.asked)
        except Exception as error:
            reply = self.predict.refuse(error, self.asked)
        self.to.answer(reply)


class Answerable(asyncio.Event):
    """The event that the caller of a job can be answered."""

    def note(self, _: Job) -> None:
        """Wake the task that waits for it."""
        self.set()


@dataclass(eq=False, slots=True, kw_only=True)
class Predict:
    """Answers predictions.

    - `start` answers a plain request that has arrived completely, without an asyncio task; `admit` and `start_admitted`
      answer one whose body arrives in parts (`http/connection`).
    - `enter` and `respond` answer any request: the first needs only its head, the second its body (`http/asgi`).
    - `submit_and_wait` gives the job instead of a reply, for other protocols and for probes.

    Attributes:
        rate_limit: None without a rate limit.
        refusals: Converts errors into replies.
    """

    settings: ControllerSettings
    endpoints: ConfiguredEndpoints
    gate: Gate
    rate_limit: RateLimit | None
    watcher: PoolWatcher
    backlogs: Backlogs
    dispatcher: Dispatcher
    results: Results
    idempotency: Idempotency
    large_bodies: LargeBodies
    refusals: Refusals
    clock: PoolClock
    drain: Drain
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, asked: Asked, body: bytes, client: Client, to: Addressee) -> None:
        """Answer a complete request without an asyncio task; errors become replies.

        Only for the plain requests that `KnownHeads.read` lets pass: no idempotency key, no content coding, no webhook.
        The gate has checked their host and origin. A controller with a rate limit or traces uses `enter` and `respond`.
        """
        try:
            request = self.admit(asked, len(body), client)
        except Exception as error:
            to.answer(self.refuse(error, asked, client))
        else:
            self.start_admitted(request, [body], to)

    def admit(self, asked: Asked, body_bytes: int, client: Client) -> Request:
        """Admit a plain request whose body may not have arrived yet.

        Args:
            body_bytes: Announced size of its body.

        Raises:
            ModelyardError: The request is refused.
        """
        received_at_ms = self.clock.now_ms()
        caller = self.gate.admit(asked.authorization, client)
        self.check_size(body_bytes)
        return Request(asked, caller, client, received_at_ms)

    def start_admitted(self, request: Request, parts: list[bytes], to: Addressee) -> None:
        """Answer an admitted plain request; errors become replies.

        Args:
            parts: Its body.
        """
        asked = request.asked
        try:
            possible = self._routes(request)
            samples = self._read_at_once(asked, parts, possible)
            if len(possible) > 1:
                self._check_room(samples.route, request)
            job = self._job(samples, request, Exchange(self, asked, to).answer)
        except NeedsReader:
            self._keep(asyncio.create_task(self._answer_with_reader(request, parts, to)))
        except Exception as error:
            to.answer(self.refuse(error, asked, request.client))
        else:
            self._submit(job, asked.wait_s)

    def enter(
        self, headers: HeaderList, query_string: bytes, client: Client, address: Address = PREDICT
    ) -> Request:
        """Admit a request whose body has not arrived yet.

        Raises:
            ModelyardError: The request is refused.
        """
        received_at_ms = self.clock.now_ms()
        self.gate.check_site(headers)
        by_name = dict(headers)
        caller = self.gate.admit(by_name.get(b"authorization", b""), client)
        asked = read_head(by_name, query_string, self.settings, self.endpoints, address)
        return Request(asked, caller, client, received_at_ms)

    async def respond(self, request: Request, parts: list[bytes], key: bytes | None = None) -> Reply:
        """Answer an admitted request.

        Args:
            parts: Its body.
            key: Its idempotency key.

        Raises:
            ModelyardError: The request is refused.
        """
        if key is None:
            return await self._submit_and_reply(request, parts)
        # Before routing and the backlog may refuse: a repeated POST gets its job even if a new job would be refused.
        # A large body is hashed in a thread, because hashing releases the GIL.
        identity = (request.asked.identity(), *parts)
        entry = partial(self.idempotency.entry, key, identity, request.caller.name)
        once = await asyncio.to_thread(entry) if is_large(parts) else entry()
        first = await self.idempotency.reserve(once)
        if first:
            return await self._repeat(first, request)
        try:
            return await self._submit_and_reply(request, parts, once)
        except Exception:
            await self.idempotency.release(once)
            raise

    def check_size(self, body_bytes: int) -> None:
        """Refuse a body that is larger than the settings allow.

        Raises:
            TooLargeError: The body is too large.
        """
        limit = self.settings.max_body_bytes
        if body_bytes > limit:
            raise TooLargeError(f"the body is larger than {limit} bytes; send fewer samples per request")

    def end_waits(self) -> None:
        """Answer all callers that wait for an outcome with the job's URL, because the controller is stopping."""
        self.drain.is_over = True
        for job in self.dispatcher.jobs():
            job.stop_waiting()
        self.results.end_waits()

    async def _submit_and_reply(
        self, request: Request, parts: list[bytes], once: Reservation | None = None
    ) -> Reply:
        job = await self.submit_and_wait(request, parts, once)
        return self.reply(job, request.asked)

    async def _answer_with_reader(self, request: Request, parts: list[bytes], to: Addressee) -> None:
        try:
            reply = await self._submit_and_reply(request, parts)
        except Exception as error:
            reply = self.refuse(error, request.asked, request.client)
        to.answer(reply)

    async def submit_and_wait(
        self, request: Request, parts: list[bytes], once: Reservation | None = None
    ) -> Job:
        """Submit an admitted request and wait; the job then has its acceptance, its outcome or an error.

        Args:
            parts: Its body; emptied, so that it takes no memory during the wait.
            once: Its idempotency key, if it has one.

        Raises:
            ModelyardError: The request is refused.
        """
        asked, answerable = request.asked, Answerable()
        try:
            possible = self._routes(request)
            samples = await self._read(asked, parts, possible)
            parts.clear()
            if len(possible) > 1:
                self._check_room(samples.route, request)
            job = self._job(samples, request, answerable.note)
        except (InputError, TooLargeError):
            if self.rate_limit:  # a refused input costs as much as a prediction
                await self.rate_limit.count(request.caller, request.client, 1)
            raise
        if self.rate_limit:
            await self.rate_limit.count(request.caller, request.client, job.entry.n_samples)
        job.once, job.trace, job.callback = once, tracing.current.get(), asked.callback_url
        self._submit(job, asked.wait_s)
        await answerable.wait()
        return job

    def _routes(self, request: Request) -> tuple[Route, ...]:
        """The possible routes; the body decides which of several is taken.

        Raises:
            ModelyardError: No version can be chosen, or its queue is full.
        """
        asked = request.asked
        possible = routes(self.watcher.view.snapshot, asked.selector, asked.deadline_s)
        # Refuse before the body is decoded, if possible: under overload most requests are refused.
        if len(possible) == 1:
            self._check_room(possible[0], request)
        return possible

    def _read_at_once(self, asked: Asked, parts: list[bytes], possible: tuple[Route, ...]) -> Samples:
        """The samples of a body.

        Raises:
            NeedsReader: Only a reader process may read it.
            ModelyardError: The body is refused.
        """
        if is_large(parts):
            raise NeedsReader
        body, max_samples = b"".join(parts), self.settings.max_samples
        return read_samples(
            asked.content_type, body, possible, max_samples, asked.reading, params=asked.params
        )

    async def _read(self, asked: Asked, parts: list[bytes], possible: tuple[Route, ...]) -> Samples:
        """The samples of a body. Another process reads tables, images and large bodies.

        Raises:
            ModelyardError: The body is refused.
        """
        with suppress(NeedsReader):
            return self._read_at_once(asked, parts, possible)
        max_samples, max_bytes = self.settings.max_samples, DECODED_TIMES * self.settings.max_body_bytes
        return await self.large_bodies.read(
            parts, asked.content_type, possible, max_samples, asked.reading, max_bytes, asked.params
        )

    def _check_room(self, route: Route, request: Request) -> None:
        self.backlogs.check_room(route.candidate.queue, request.asked.deadline_s, request.caller.name)

    def _job(self, samples: Samples, request: Request, on_answerable: Callable[[Job], None]) -> Job:
        asked, route = request.asked, samples.route
        return Job(
            route=route,
            entry=JobEntry(
                n_samples=samples.n_samples,
                received_at_ms=request.received_at_ms,
                deadline_ms=request.received_at_ms + asked.deadline_s * 1000,
                policy=route.policy,
                forced=route.forced,
                owner=request.caller.name,
                decision=route.decision,
                degraded=route.degraded,
                comparable=route.comparable,
            ),
            data=samples.data,
            wants_outcome=asked.wait_s > 0,
            waits_until_s=time.monotonic() + asked.wait_s,
            on_answerable=on_answerable,
            form=samples.form,
            is_unified=samples.is_unified,
        )

    def _submit(self, job: Job, wait_s: float) -> None:
        self.dispatcher.submit(job)
        lives_ms = job.entry.deadline_ms - job.entry.received_at_ms
        if lives_ms < wait_s * 1000 and not job.is_answered:
            asyncio.get_running_loop().call_later(lives_ms / 1000, self._at_deadline, job)

    def reply(self, job: Job, asked: Asked) -> Reply:
        """The reply to the request of a finished wait.

        Raises:
            ModelyardError: The job was not accepted, or its outcome is unreadable.
        """
        if job.error:
            raise job.error
        batch, wait_s = job.batch, asked.wait_s
        assert batch is not None
        if asked.reading == "mlflow":
            return invocations.reply(job, asked, self.settings.prefix, self.drain)
        if batch.outcome and wait_s > 0:
            own = batch.outcome.jobs[job.index]
            return Reply(200, [JSON], batch.json.job(job.index, own.status, batch.outcome))
        if job.expired:
            return Reply(200, [JSON], batch.json.job(job.index, "expired", None))
        job_id = ids.job_id(batch.batch_id, job.index)
        if self.drain.is_over and wait_s > 0:
            return self._interrupted(job_id)
        location = (b"location", result_url(job_id, self.settings.prefix).encode())
        # It may run by now, which only Redis knows; 202 means that it is accepted.
        return Reply(202, [JSON, location], batch.json.job(job.index, "queued", None))

    def refuse(self, error: Exception, asked: Asked, client: Client = None) -> Reply:
        """The reply to a request that is refused, which is counted and logged."""
        if asked.reading == "mlflow":
            self.refusals.reply_to(error, client, "POST", invocations.PATH)
            return invocations.refusal(error)
        return self.refusals.reply_to(error, client, "POST", "/predict")

    def _interrupted(self, job_id: str) -> Reply:
        error = DrainingError(
            "this controller is stopping; the job was accepted and continues: read it at its result_url",
            retry_after_s=1,
        )
        url = result_url(job_id, self.settings.prefix)
        refusal = self.refusals.reply(error, id=job_id, result_url=url)
        return Reply(refusal.status, [*refusal.headers, (b"location", url.encode())], refusal.body)

    def _at_deadline(self, job: Job) -> None:
        """Tell a waiting caller that no worker took the job in time, before the batch is closed."""
        if job.accepted and not job.is_answered:
            self._keep(asyncio.create_task(self._see_whether_expired(job)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_whether_expired(self, job: Job) -> None:
        assert job.batch
        with suppress(ModelyardError):  # on an error the caller continues to wait
            owner = Caller(job.entry.owner, is_operator=False)
            job_id = ids.job_id(job.batch.batch_id, job.index)
            view = await self.results.job(job_id, owner, EXPIRY_POLL_S)
            if view.status == "expired":
                job.expired = True
                job.answer()

    async def _repeat(self, first_job_id: str, request: Request) -> Reply:
        wait_s = request.asked.wait_s
        view = await self.results.job(first_job_id, request.caller, wait_s)
        done = view.status in FINAL_STATUSES and wait_s > 0
        if self.drain.is_over and wait_s > 0 and not done:
            return self._interrupted(first_job_id)
        location: Headers = (
            [] if done else [(b"location", result_url(first_job_id, self.settings.prefix).encode())]
        )
        body = job_json(
            view.ref, view.head, view.status, view.outcome if done else None, self.settings.prefix
        )
        return Reply(200 if done else 202, [JSON, *location], body)
