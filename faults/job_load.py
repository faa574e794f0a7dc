"""Load on a pool: posts jobs at a steady rate, remembers the accepted ones and accounts for them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from faults import fault_models

SENDERS = 32
READERS = 16
POST_TIMEOUT_S = 30.0
FINAL = frozenset({"succeeded", "failed", "expired", "cancelled"})
READ_WAIT_S = 10
MOST_EXAMPLES = 5
KEEP_IDLE_S = 1.0  # a request on a connection that the controller is just closing would fail


def http_client(**options: Any) -> httpx.AsyncClient:
    """A client without certificates: loading them takes 50 ms of CPU, which would distort latencies.

    Each sender and reader has a client of its own: httpx looks at all connections of a pool for every request.
    """
    options.setdefault("limits", httpx.Limits(keepalive_expiry=KEEP_IDLE_S))
    return httpx.AsyncClient(verify=False, **options)


class Answer(Protocol):
    """An answer to a post, as httpx names its parts."""

    @property
    def status_code(self) -> int:
        """The status."""

    def json(self) -> Any:
        """The decoded body."""


class Poster(Protocol):
    """A client that posts jobs; it raises httpx's errors."""

    async def post(self, url: str, *, json: Any) -> Answer:
        """Post a document."""


def patient_client() -> httpx.AsyncClient:
    """A client that waits long for an answer."""
    return http_client(timeout=POST_TIMEOUT_S)


@dataclass(frozen=True)
class Recipe:
    """One job to post, and its expected outcome.

    Attributes:
        samples: Samples as `faults.fault_models` reads them.
        failure: Expected error code; empty if the job must succeed.
    """

    samples: tuple[tuple[float, ...], ...]
    failure: str = ""

    def is_met_by(self, job: dict[str, object]) -> bool:
        """Whether a finished job, as the API gives it, has the expected outcome."""
        if self.failure:
            error = job.get("error")
            return isinstance(error, dict) and error["code"] == self.failure
        predictions = job.get("predictions")
        expected = [int(sample[0]) for sample in self.samples]
        return isinstance(predictions, list) and [each["class"] for each in predictions] == expected


def job(
    answer: int,
    behaviour: int = fault_models.WELL,
    seconds: float = 0.0,
    failure: str = "",
    sample_seconds: float = 0.0,
) -> Recipe:
    """A job of one sample."""
    return Recipe(((answer % fault_models.N_CLASSES, behaviour, seconds, sample_seconds),), failure)


def good_jobs(seconds: float = 0.0, every: int = 10) -> Iterator[Recipe]:
    """Jobs that succeed, with changing classes; every tenth takes `seconds`."""
    return (job(number, seconds=0.0 if number % every else seconds) for number in itertools.count())


@dataclass
class Sent:
    """The results of the posts.

    Attributes:
        accepted: Every job that was answered 202, and its expected outcome.
        refused: Answers other than 202, by status and code.
        broken: Posts whose connection failed.
    """

    accepted: dict[str, Recipe] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    broken: int = 0


class Load:
    """Posts until it is stopped. A refused job is not posted again; the next one goes to the next controller.

    Args:
        urls: Returns the controllers to post to, called for each post.
        sent: Collects the results of the posts.
        open_client: Opens the client of each sender.
        senders: Posts that may be in flight.
    """

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        sent: Sent,
        recipes: Iterator[Recipe],
        rate_per_s: float,
        query: str,
        *,
        open_client: Callable[[], AbstractAsyncContextManager[Poster]] = patient_client,
        senders: int = SENDERS,
    ) -> None:
        self._open_client = open_client
        self._senders = senders
        self._urls = urls
        self._sent = sent
        self._recipes = recipes
        self._interval_s = 1 / rate_per_s
        self._query = query
        self._next_s = time.monotonic()
        self._turn = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._next_s = time.monotonic()
        self._tasks = [asyncio.create_task(self._send()) for _ in range(self._senders)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    async def finished(self) -> None:
        """Return once every recipe has been posted, if they are finite."""
        await asyncio.gather(*self._tasks)

    async def finish(self) -> None:
        """Stop posting, and wait for posts in flight."""
        self._stopping = True
        await self.finished()

    async def _send(self) -> None:
        async with self._open_client() as http:
            while not self._stopping:
                due_s = self._next_s = self._next_s + self._interval_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if self._stopping:
                    return
                try:
                    recipe = next(self._recipes)
                except StopIteration:
                    return
                await self._post(http, recipe)

    async def _post(self, http: Poster, recipe: Recipe) -> None:
        urls = self._urls()
        url = urls[next(self._turn) % len(urls)]
        try:
            answer = await http.post(f"{url}/predict?{self._query}", json={"data": recipe.samples})
        except httpx.HTTPError:
            self._sent.broken += 1
            return
        if answer.status_code == 202:
            self._sent.accepted[answer.json()["id"]] = recipe
        else:
            self._sent.refused[f"{answer.status_code} {answer.json()['code']}"] += 1


@dataclass
class Account:
    """The outcomes of the accepted jobs.

    Attributes:
        failed_as_expected: Jobs with their expected error.
        otherwise: Jobs with another outcome than expected; `examples` shows some.
        lost: Jobs without an outcome in time, or unknown.
    """

    succeeded: int = 0
    failed_as_expected: int = 0
    otherwise: int = 0
    lost: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.succeeded + self.failed_as_expected + self.otherwise + self.lost

    def add(self, other: Account) -> None:
        """Add the counts of another account."""
        self.succeeded += other.succeeded
        self.failed_as_expected += other.failed_as_expected
        self.otherwise += other.otherwise
        self.lost += other.lost
        self.examples = [*self.examples, *other.examples][:MOST_EXAMPLES]


async def account(urls: Sequence[str], accepted: dict[str, Recipe], limit_s: float) -> Account:
    """Read every accepted job over HTTP until it has its outcome, for at most `limit_s`."""
    result, give_up_at = Account(), time.monotonic() + limit_s
    todo, turn = iter(accepted.items()), itertools.cycle(urls)

    async def read_some() -> None:
        async with http_client(timeout=READ_WAIT_S + 20) as http:
            for job_id, recipe in todo:
                count(result, job_id, recipe, await _final(http, turn, job_id, give_up_at))

    await asyncio.gather(*(read_some() for _ in range(READERS)))
    return result


async def _final(
    http: httpx.AsyncClient, turn: Iterator[str], job_id: str, give_up_at: float
) -> dict[str, object]:
    """The job with its outcome, or as it was last read before the limit."""
    last: dict[str, object] = {"status": "never read"}
    while True:
        try:
            answer = await http.get(f"{next(turn)}/results/{job_id}?wait={READ_WAIT_S}")
            last = answer.json()
        except httpx.HTTPError as error:
            last = {"status": repr(error)}
        if last["status"] in FINAL or time.monotonic() > give_up_at:
            return last
        await asyncio.sleep(0.05)


def count(result: Account, job_id: str, recipe: Recipe, found: dict[str, object]) -> None:
    """Count one job by its last state."""
    if found["status"] not in FINAL:
        result.lost += 1
    elif not recipe.is_met_by(found):
        result.otherwise += 1
    elif recipe.failure:
        result.failed_as_expected += 1
        return
    else:
        result.succeeded += 1
        return
    if len(result.examples) < MOST_EXAMPLES:
        result.examples.append(f"{job_id}: {found.get('status')} {found.get('error', '')}")
