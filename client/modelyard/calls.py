"""The HTTP API without any I/O: builds calls, reads answers, and defines the sequence of calls.

`modelyard.http` executes these calls, synchronously or with await; `modelyard.retries` decides about repetitions.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypedDict, TypeVar, cast
from urllib.parse import quote

import msgspec

from modelyard import errors
from modelyard.client_errors import (
    AnswerUnreadableError,
    BatchUnsuccessfulError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobUnsuccessfulError,
    WaitTimeoutError,
)
from modelyard.decoders import decoder
from modelyard.errors import (
    ConfigurationError,
    ForbiddenError,
    ModelyardError,
    NotFoundError,
    ParameterError,
    QueueFullError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from modelyard.inputs import Encoded, Input, Params, Samples, read_input
from modelyard.parts import JoinedJob, Limits, Part, has_outcome, join, next_part
from modelyard.schemas import (
    BatchFile,
    BatchFiles,
    DecisionList,
    Job,
    JobList,
    Jobs,
    Pool,
    Problem,
    Readiness,
    RoutePlan,
    VersionControl,
)

T = TypeVar("T")

VERSION_ACTIONS = ("disable", "enable", "retire", "pin", "forget")
PARTS_AHEAD = 8  # parts of one input that wait for their outcome at the same time
JOBS_PER_CALL = 200  # the controller reads 1,000, but proxies commonly limit a request's line to 8 KiB
LONG_POLL_S = 20.0  # below the idle timeout of common proxies and below the controller's limit
QUERY_NAMES = {"deadline_s": "deadline"}  # of options that the HTTP API names otherwise
STATUS_ERRORS: dict[int, type[ModelyardError]] = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    413: TooLargeError,
    429: QueueFullError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
UNSUCCESSFUL: dict[str, type[JobUnsuccessfulError]] = {
    "failed": JobFailedError,
    "expired": JobExpiredError,
    "cancelled": JobCancelledError,
}


class VersionOptions(TypedDict, total=False):
    """Options that select the version.

    Attributes:
        worker: Worker number to use instead of the policy's choice.
        model: Name of the model to use.
        version: Version of that model to use: its number or an alias of the registry, such as "champion".
        endpoint: Name of the endpoint whose best version is to be used.
    """

    worker: int | None
    model: str | None
    version: int | str | None
    endpoint: str | None


class RouteOptions(VersionOptions, total=False):
    """Options that decide where a request goes: those of `VersionOptions` and a deadline.

    Attributes:
        deadline_s: Seconds until the job expires; default: the controller's.
    """

    deadline_s: float | None


class SubmitOptions(RouteOptions, total=False):
    """Options of a prediction request beside its samples: those of `RouteOptions` and these.

    Attributes:
        idempotency_key: POST requests with the same key are one job; default: a new key for each call.
        callback_url: Where the controller delivers the job when it has ended, see `verify_webhook`.
    """

    idempotency_key: str | None
    callback_url: str | None


class BatchOptions(VersionOptions, total=False):
    """Options of a batch: those of `VersionOptions` and these.

    Attributes:
        rows: Rows in one request, at most; default: the controller's.
        idempotency_key: Posts with the same key are one batch; default: a new key for each call.
    """

    rows: int | None
    idempotency_key: str | None


class JobFilter(TypedDict, total=False):
    """Which jobs to list; without any, the newest finished ones.

    Attributes:
        status: A job's status, `open` or `finished`.
        model: Only jobs of this model.
        version: Only jobs of this version.
        code: Only jobs with this error code.
        min_ms: Least time from arrival to outcome, or until now.
        min_attempts: Least number of claims by a worker.
        since_ms: Earliest outcome, or arrival of an open job, in ms since the epoch.
        limit: Most jobs of the page.
        cursor: `next` of the page before.
    """

    status: str
    model: str
    version: int | None
    code: str
    min_ms: float
    min_attempts: int
    since_ms: float
    limit: int
    cursor: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP exchange.

    Attributes:
        answer: Type of the answer's JSON document.
        upload: File that is sent as the body.
        saved_to: File that the body of the answer is written to, in place of reading it.
        wait_s: Seconds for which the controller may delay its answer.
        answered_with: Statuses besides 2xx that are not errors.
    """

    method: str
    path: str
    answer: type[T]
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    upload: Path | None = None
    saved_to: Path | None = None
    wait_s: float = 0.0
    answered_with: frozenset[int] = frozenset()

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> T:
        """Read the answer.

        Args:
            status: HTTP status.
            headers: HTTP headers, names in lower case or case-insensitive.
            body: The whole body.

        Raises:
            ModelyardError: The controller refused; the problem's code determines the class.
            AnswerUnreadableError: The body does not match the expected type.
        """
        if not 200 <= status < 300 and status not in self.answered_with:
            error = error_of(status, headers, body)
            if error.code == NotFoundError.code:  # the path itself; what a request names has codes of its own
                raise NotFoundError(
                    f"nothing answers {self.method} {self.path} at this address: the URL has another path, or belongs "
                    "to another server or to an older controller"
                )
            raise error
        try:
            return decoder(self.answer).decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AnswerUnreadableError(
                f"{self.method} {self.path} was answered with {status} and something that is not a "
                f"{self.answer.__name__.lower()}: {error}; is this a Modelyard controller of this version?"
            ) from None


Flow: TypeAlias = Generator[Call[Any], Any, T]


BATCH_TYPES = {
    ".csv": "text/csv",
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".zip": "application/zip",
}
BATCH_OUTPUTS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}


def post_batch(
    source: Path, output: str | None, params: Params | None, options: BatchOptions
) -> Call[BatchFile]:
    """Post a file of rows.

    Args:
        output: Format of the output; None for the controller's choice.

    Raises:
        ConfigurationError: The file does not exist, or is of a kind that is not sent.
    """
    _only_known(options, BatchOptions, "params")
    kind = BATCH_TYPES.get(source.suffix.lower())
    if kind is None or not source.is_file():
        raise ConfigurationError(f"{source} is no file of one of the kinds {', '.join(BATCH_TYPES)}")
    asked: dict[str, Any] = {**options}
    key = _key(asked.pop("idempotency_key", None))
    text = msgspec.json.encode(params).decode() if params else None
    headers = {
        "Idempotency-Key": key,
        "Content-Type": kind,
        "Content-Length": str(source.stat().st_size),
    }
    query = _query(output=output, params=text, **asked)
    return Call("POST", "/batches", BatchFile, query=query, headers=headers, upload=source)


def batch_state(batch: BatchFile | str, wait_s: float = 0.0) -> Call[BatchFile]:
    """Read a batch; its answer may wait `wait_s` seconds for the end."""
    return Call("GET", _batch_path(batch), BatchFile, query=_wait(wait_s), wait_s=wait_s)


def batch_list(limit: int) -> Call[BatchFiles]:
    """List batches, newest first."""
    return Call("GET", "/batches", BatchFiles, query={"limit": limit})


def cancelled_batch(batch: BatchFile | str) -> Call[BatchFile]:
    """Cancel a batch that has not ended."""
    return Call("DELETE", _batch_path(batch), BatchFile)


def saved(batch: BatchFile | str, what: str, path: Path) -> Call[None]:
    """Write the `output` or the `errors` of a batch to a file."""
    return Call("GET", f"{_batch_path(batch)}/{what}", type(None), saved_to=path)


def _batch_path(batch: BatchFile | str) -> str:
    return f"/batches/{quote(_id(batch), safe='')}"


def post(samples: Encoded, wait_s: float, options: SubmitOptions) -> Call[Job]:
    """Post samples.

    Args:
        wait_s: Seconds for which the answer may wait for the outcome.
    """
    asked: dict[str, Any] = {**options}
    # Always with a key: without one, repeating a POST whose answer was lost would run it twice.
    key = _key(asked.pop("idempotency_key", None))
    # `wait` is stated, because the endpoint may have another default.
    query = _query(**asked) | {"wait": round(wait_s, 3)}
    headers = {"Idempotency-Key": key, "Content-Type": samples.content_type}
    return Call("POST", "/predict", Job, query=query, headers=headers, body=samples.body, wait_s=wait_s)


def result(job_id: str, wait_s: float = 0.0) -> Call[Job]:
    """Read a job; its answer may wait `wait_s` seconds for the outcome."""
    return Call("GET", _job_path(job_id), Job, query=_wait(wait_s), wait_s=wait_s)


def explained(job: Job | str) -> Call[Job]:
    """Read a job with the reason why it went to its version."""
    return Call("GET", _job_path(_id(job)), Job, query={"explain": "true"})


def route(options: RouteOptions) -> Call[RoutePlan]:
    """Ask where a request would go now."""
    _only_known(options, RouteOptions)
    return Call("GET", "/route", RoutePlan, query=_query(**options))


def results(job_ids: Sequence[str], wait_s: float = 0.0) -> Call[Jobs]:
    """Read many jobs; the answer may wait `wait_s` seconds for the last outcome."""
    query: dict[str, str | float] = {"ids": ",".join(job_ids), **_wait(wait_s)}
    return Call("GET", "/results", Jobs, query=query, wait_s=wait_s)


def cancelled(job_id: str) -> Call[Job]:
    """Cancel a job that has not run."""
    return Call("DELETE", _job_path(job_id), Job)


def job_list(wanted: JobFilter) -> Call[JobList]:
    """Read one page of the list of jobs."""
    _only_known(wanted, JobFilter)
    query = cast(Mapping[str, str | float], {name: value for name, value in wanted.items() if value})
    return Call("GET", "/jobs", JobList, query=query)


def workers() -> Call[Pool]:
    """Read the pool."""
    return Call("GET", "/workers", Pool)


def control(
    action: str, model: str, version: int | None, reason: str, reroute: bool, dry_run: bool
) -> Call[VersionControl]:
    """Take a version out of service, or put it back."""
    if (version is None) != (action == "unpin") or action not in (*VERSION_ACTIONS, "unpin"):
        raise ParameterError(
            f"got the action {action!r} and the version {version!r}; expected {', '.join(VERSION_ACTIONS)} with a "
            "version, or unpin without one"
        )
    path = f"/models/{quote(model, safe='')}" + (f"/versions/{version}" if version is not None else "")
    query = _stated(reason=reason, reroute=reroute, dry_run=dry_run)
    method, path = ("DELETE", path) if action == "forget" else ("POST", f"{path}/{action}")
    return Call(method, path, VersionControl, query=query)


def scale(model: str, version: int, replicas: int | None, reason: str, dry_run: bool) -> Call[VersionControl]:
    """Set the number of a version's workers."""
    path = f"/models/{quote(model, safe='')}/versions/{version}/scale"
    query = {"replicas": "auto" if replicas is None else str(replicas)}
    return Call("POST", path, VersionControl, query=query | _stated(reason=reason, dry_run=dry_run))


def _stated(reason: str, **switches: bool) -> dict[str, str]:
    """The reason if there is one, and the switches that are on."""
    return ({"reason": reason} if reason else {}) | {
        name: "true" for name, is_on in switches.items() if is_on
    }


def decisions(limit: int) -> Call[DecisionList]:
    """Read the log of decisions."""
    return Call("GET", "/decisions", DecisionList, query={"limit": limit})


def ready() -> Call[Readiness]:
    """Ask whether jobs can be accepted; 503 is a valid answer."""
    return Call("GET", "/readyz", Readiness, answered_with=frozenset({503}))


def submit(samples: Samples, params: Params | None, options: SubmitOptions, limits: Limits) -> Flow[Job]:
    """Submit; samples that are larger than a request may be are cut.

    Returns:
        The job, or a `JoinedJob` of the parts.
    """
    _only_known(options, SubmitOptions, "params")
    sent = yield from _posted(read_input(samples, params), options, limits)
    return join(sent.jobs, sent.n_rows)


def predict(
    samples: Samples, params: Params | None, wait_s: float, options: SubmitOptions, limits: Limits
) -> Flow[Job]:
    """Submit, then wait until the job has succeeded.

    Raises:
        JobUnsuccessfulError: It failed, expired or was cancelled.
        WaitTimeoutError: It has no outcome after `wait_s` seconds.
        OutputsNotJoinableError: The samples were cut, and the version does not answer a row for each row.
    """
    _only_known(options, SubmitOptions, "params", "wait_s")
    ends_at_s = _after(wait_s)
    sent = yield from _posted(read_input(samples, params), options, limits, wait_s, ends_at_s)
    return (yield from _all_succeeded(sent.jobs, sent.n_rows, ends_at_s))


def batch(
    source: Path, output: Path, params: Params | None, wait_s: float, options: BatchOptions
) -> Flow[BatchFile]:
    """Post a file, wait until it is predicted, and write the output and the rows that have none.

    Raises:
        BatchUnsuccessfulError: It failed, was cancelled, or has not ended after `wait_s` seconds.
    """
    kind = BATCH_OUTPUTS.get(output.suffix.lower())
    if kind is None:
        raise ConfigurationError(
            f"{output} is of an unknown kind; expected one of {', '.join(BATCH_OUTPUTS)}"
        )
    ends_at_s = _after(wait_s)
    seen: BatchFile = yield post_batch(source, kind, params, options)
    while not seen.done and (left_s := ends_at_s - time.monotonic()) > 0:
        seen = yield batch_state(seen.id, min(left_s, LONG_POLL_S))
    if seen.status != "succeeded":
        raise BatchUnsuccessfulError(seen)
    if seen.rows_failed:
        yield saved(seen.id, "errors", output.with_name(f"{output.stem}.bad.ndjson"))
    yield saved(seen.id, "output", output)
    return seen


def wait(job: Job | str, timeout_s: float) -> Flow[Job]:
    """Wait until the job has succeeded; raises like `predict`."""
    ends_at_s = _after(timeout_s)
    if isinstance(job, JoinedJob):
        return (yield from _all_succeeded(job.parts, job.part_rows, ends_at_s))
    seen = yield result(_id(job), min(timeout_s, LONG_POLL_S))
    return (yield from _until_succeeded(seen, ends_at_s))


def read(job: Job | str) -> Flow[Job]:
    """Read a job, or all parts of a joined one."""
    return (yield from _each(job, result))


def read_all(jobs: Iterable[Job | str], wait_s: float) -> Flow[list[Job | ModelyardError]]:
    """Read many jobs, and wait up to `wait_s` seconds for outcomes; an error stands in the place of its job."""
    if isinstance(jobs, Job | str):
        raise TypeError("got one job; expected a list of jobs or ids")
    ends_at_s, ids = _after(wait_s), list(map(_id, jobs))
    seen: dict[str, Job | ModelyardError] = {}
    for start in range(0, len(ids), JOBS_PER_CALL):
        awaited = list(dict.fromkeys(ids[start : start + JOBS_PER_CALL]))
        while awaited:
            left_s = max(0.0, min(ends_at_s - time.monotonic(), LONG_POLL_S))
            answer = yield results(awaited, left_s)
            seen |= zip(awaited, map(_job_or_error, answer.jobs), strict=True)
            awaited = [job_id for job_id in awaited if _is_open(seen[job_id])] if left_s > 0 else []
    return [seen[job_id] for job_id in ids]


def _job_or_error(document: msgspec.Raw) -> Job | ModelyardError:
    try:
        return decoder(Job).decode(document)
    except msgspec.ValidationError:
        return error_of(decoder(Problem).decode(document).status, {}, bytes(document))


def _is_open(seen: Job | ModelyardError) -> bool:
    return isinstance(seen, Job) and not seen.done


def cancel(job: Job | str) -> Flow[Job]:
    """Cancel a job that has not run, or all parts of a joined one."""
    return (yield from _each(job, cancelled))


def _each(job: Job | str, call: Callable[[str], Call[Job]]) -> Flow[Job]:
    if not isinstance(job, JoinedJob):
        only: Job = yield call(_id(job))
        return only
    seen: dict[str, Job] = {}
    for part in job.parts:
        seen[part.id] = yield call(part.id)
    return join([*seen.values()], job.part_rows)


class _Sent(NamedTuple):
    jobs: list[Job]
    n_rows: list[int]


def _posted(
    given: Input, options: SubmitOptions, limits: Limits, wait_s: float = 0.0, ends_at_s: float | None = None
) -> Flow[_Sent]:
    """Post all rows, in as many requests as the controller's limits demand.

    All parts go to the version that the first one was routed to.

    Args:
        wait_s: Seconds for which the answer to a single request may wait for the outcome.
        ends_at_s: Until when to wait for outcomes of parts; None to return as soon as the jobs are accepted.
    """
    sent, start, size = _Sent([], []), 0, given.n_rows
    while not sent.jobs or start < given.n_rows:
        part = next_part(given, start, size, limits)
        is_whole = part.n_rows == given.n_rows
        own_wait_s = min(wait_s, LONG_POLL_S) if is_whole else 0.0
        own_options = options if is_whole else _of_part(options, part)
        try:
            job = yield post(part.encoded, own_wait_s, own_options)
        except TooLargeError as error:
            if part.n_rows < 2:
                raise
            limits.learn(error, part)
            continue
        if not is_whole:
            options = {**options, **of_version(job)}
        sent.jobs.append(job)
        sent.n_rows.append(part.n_rows)
        start, size = part.stop, part.n_rows
        ahead = len(sent.jobs) - PARTS_AHEAD
        if ahead >= 0 and ends_at_s is not None:  # later parts must not expire behind the first ones
            sent.jobs[ahead] = yield from _until_succeeded(sent.jobs[ahead], ends_at_s)
    return sent


def of_version(job: Job) -> SubmitOptions:
    """The options that send further samples to a job's version, in place of an endpoint."""
    return {"model": job.model_name, "version": job.model_version, "endpoint": None}


def _of_part(options: SubmitOptions, part: Part) -> SubmitOptions:
    key = options.get("idempotency_key")
    return {**options, "idempotency_key": f"{key}.{part.start}-{part.stop}"} if key else options


def _all_succeeded(jobs: Sequence[Job], n_rows: Sequence[int], ends_at_s: float) -> Flow[Job]:
    seen: dict[str, Job] = {}
    for job in jobs:
        seen[job.id] = yield from _until_succeeded(job, ends_at_s)
    return join([*seen.values()], n_rows)


def _until_succeeded(job: Job, ends_at_s: float) -> Flow[Job]:
    while not job.done and (left_s := ends_at_s - time.monotonic()) > 0:
        job = yield result(job.id, min(left_s, LONG_POLL_S))
    if not job.done:
        raise WaitTimeoutError(job)
    if not has_outcome(job):
        job = yield result(job.id)
    if job.status != "succeeded":
        raise UNSUCCESSFUL[job.status](job)
    return job


def _after(wait_s: float) -> float:
    """The monotonic time when a wait ends."""
    if isinstance(wait_s, int | float) and not math.isnan(wait_s):
        return time.monotonic() + wait_s
    raise TypeError(f"got {wait_s!r:.80} for the time to wait; expected seconds, or math.inf for no limit")


def _only_known(given: Mapping[str, Any], options: type, *others: str) -> None:
    """Refuse options that do not exist; the arguments of an inner function would be named otherwise."""
    known = (*others, *options.__annotations__)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise TypeError(f"there is no option {unknown!r}; expected some of {', '.join(known)}")


def _key(given: str | None) -> str:
    key = str(given or uuid.uuid4().hex)
    if not (key.isascii() and key.isprintable()):
        raise ParameterError(f"got {key!r:.80} for idempotency_key; expected printable ASCII characters")
    return key


def _query(**asked: Any) -> dict[str, str | float]:
    return {QUERY_NAMES.get(name, name): value for name, value in asked.items() if value is not None}


def _wait(wait_s: float) -> dict[str, float]:
    return {"wait": round(wait_s, 3)} if wait_s else {}


def _id(named: Job | BatchFile | str) -> str:
    if isinstance(named, Job | BatchFile):
        return named.id
    if isinstance(named, str) and named:
        return named
    raise TypeError(f"got {named!r:.80} for a job or a batch; expected one, or its id")


def _job_path(job_id: str) -> str:
    return f"/results/{quote(job_id, safe='')}"


class _Told(msgspec.Struct, frozen=True):
    """The members of a problem document that an error uses; those of a proxy may be incomplete."""

    code: str = ""
    detail: str = ""
    max_body_bytes: int | None = None
    max_samples: int | None = None


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ModelyardError:
    """The error for an answer: by the problem's code, otherwise by the status."""
    try:
        problem = decoder(_Told).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):  # for example a proxy's error page
        problem = _Told()
    kind = error_classes().get(problem.code) or STATUS_ERRORS.get(status, ModelyardError)
    detail = problem.detail or (
        f"the address answered {status} without a reason, which controllers always give; check the address, and "
        "proxies on the way"
    )
    error = kind(detail, retry_after_s=_retry_after_s(headers.get("retry-after")))
    error.code = problem.code or error.code  # also a code that only newer controllers know
    if isinstance(error, TooLargeError):
        error.max_body_bytes, error.max_samples = problem.max_body_bytes, problem.max_samples
    return error


@cache
def error_classes() -> dict[str, type[ModelyardError]]:
    """Every class of `modelyard.errors` by its code."""
    tree = [ModelyardError]
    for kind in tree:  # the list grows while it is walked: breadth first
        tree.extend(child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return {kind.code: kind for kind in tree}


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    at = parsedate_tz(value)
    return None if at is None else max(0.0, mktime_tz(at) - time.time())
