"""Sends many samples to a controller with limited concurrency, and records the result of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from modelyard.calls import SubmitOptions
from modelyard.client_errors import ControllerUnreachableError, JobUnsuccessfulError, WaitTimeoutError
from modelyard.errors import ModelyardError, QueueFullError, RateLimitError, UnavailableError
from modelyard.http import AsyncClient
from modelyard.inputs import Params
from modelyard.records import Record
from modelyard.samples import DrawnSamples
from modelyard.schemas import Job

OUTCOME_TIMEOUT_S = 60.0


class Benchmark:
    """One run against one controller.

    A request that is refused because of a full queue or a missing worker, or a job that does not succeed, is recorded
    as well, and the run continues.

    Each sender has its own client and connection: httpx's pool checks all its connections on every request, and with
    tens of them one shared client would mostly measure itself.

    Args:
        connect: Creates a client of the measured controller.
        samples: Samples to send, one per request.
        options: Which version to use; without any, the controller chooses.
        params: Parameters of the version.

    Attributes:
        records: A record of each request that has ended.
    """

    def __init__(
        self,
        connect: Callable[[], AsyncClient],
        samples: DrawnSamples,
        *,
        options: SubmitOptions | None = None,
        params: Params | None = None,
    ) -> None:
        self._connect = connect
        self._samples = samples
        self._options: SubmitOptions = options or {}
        self._params = params
        self.records: list[Record] = []

    async def run(
        self, concurrency: int, on_record: Callable[[Record], object] = lambda record: None
    ) -> None:
        """Send all samples, `concurrency` of them at the same time.

        Args:
            on_record: Called with each record as soon as it exists.

        Raises:
            ControllerUnreachableError: The controller is unreachable after all retries; the rest was not sent.
            ModelyardError: It refuses for a reason that applies to every sample, such as an unknown worker.
        """
        indexes = iter(range(len(self._samples)))
        first: ModelyardError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._send_in_turn(indexes, on_record))
        except* ModelyardError as errors:
            # Python 3.11.2 would raise a group again, if the error was raised here.
            first = next(each for each in errors.exceptions if isinstance(each, ModelyardError))
        if first is not None:
            raise first from None

    async def _send_in_turn(self, indexes: Iterator[int], on_record: Callable[[Record], object]) -> None:
        async with self._connect() as client:
            for index in indexes:
                record = await self._measure(client, index)
                self.records.append(record)
                on_record(record)

    async def _measure(self, client: AsyncClient, index: int) -> Record:
        sent_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        started_s = time.perf_counter()
        job, error_code = await self._outcome(client, index)
        latency_ms = round((time.perf_counter() - started_s) * 1000, 3)
        return record_of(job, error_code, sent_at, latency_ms, self._samples.label(index))

    async def _outcome(self, client: AsyncClient, index: int) -> tuple[Job | None, str | None]:
        """The job, if one was accepted, and the error code, if there was an error."""
        sample = self._samples.sample(index)
        try:
            job = await client.predict(sample, params=self._params, wait_s=OUTCOME_TIMEOUT_S, **self._options)
            return job, None
        except JobUnsuccessfulError as error:
            return error.job, error.job.error.code if error.job.error else error.code
        except WaitTimeoutError as error:
            return error.job, error.code
        except ControllerUnreachableError:
            raise
        except (QueueFullError, RateLimitError, UnavailableError) as error:
            return None, error.code


def record_of(
    job: Job | None, error_code: str | None, sent_at: str, client_latency_ms: float, true_label: int | None
) -> Record:
    """Combine the client's and the controller's data about one request.

    Args:
        job: The job as last seen, or None if it was refused.
        error_code: The error code, if there was an error.
        sent_at: ISO 8601 in UTC.
        client_latency_ms: Time from sending to the outcome.
        true_label: True class of the sample, if known.
    """
    if job is None:
        return Record(
            timestamp=sent_at,
            true_label=true_label,
            client_latency_ms=client_latency_ms,
            status="refused",
            error=error_code,
        )
    return Record(
        timestamp=sent_at,
        job_id=job.id,
        worker=job.worker,
        model_name=job.model_name,
        model_version=job.model_version,
        val_accuracy=job.val_accuracy,
        predicted=job.predictions[0].predicted if job.predictions else None,
        true_label=true_label,
        inference_ms=job.inference_ms,
        queue_wait_ms=job.queue_wait_ms,
        end_to_end_ms=job.end_to_end_ms,
        client_latency_ms=client_latency_ms,
        status=job.status,
        error=error_code,
    )
