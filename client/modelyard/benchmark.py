"""Sends many samples to a controller with limited concurrency, and records the result of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from modelyard.client_errors import ControllerUnreachableError, JobUnsuccessfulError, WaitTimeoutError
from modelyard.errors import ModelyardError, QueueFullError, RateLimitError, UnavailableError
from modelyard.http import AsyncClient
from modelyard.records import Record
from modelyard.samples import LabelledSamples
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
        worker: Worker number to force, or None to leave the choice to the controller.
        on_record: Called with each record as soon as it exists.
    """

    def __init__(
        self,
        connect: Callable[[], AsyncClient],
        samples: LabelledSamples,
        *,
        worker: int | None = None,
        on_record: Callable[[Record], None],
    ) -> None:
        self._connect = connect
        self._samples = samples
        self._worker = worker
        self._on_record = on_record

    async def run(self, concurrency: int) -> None:
        """Send all samples, `concurrency` of them at the same time.

        Raises:
            ControllerUnreachableError: The controller is unreachable after all retries; the rest was not sent.
            ModelyardError: It refuses for a reason that applies to every sample, such as an unknown worker.
        """
        indexes = iter(range(len(self._samples)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._send_in_turn(indexes))
        except* ModelyardError as errors:
            raise errors.exceptions[0] from None

    async def _send_in_turn(self, indexes: Iterator[int]) -> None:
        async with self._connect() as client:
            for index in indexes:
                self._on_record(await self._measure(client, index))

    async def _measure(self, client: AsyncClient, index: int) -> Record:
        sent_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        started_s = time.perf_counter()
        job, error_code = await self._outcome(client, index)
        latency_ms = round((time.perf_counter() - started_s) * 1000, 3)
        return record_of(job, error_code, sent_at, latency_ms, self._samples.label(index))

    async def _outcome(self, client: AsyncClient, index: int) -> tuple[Job | None, str | None]:
        """The job, if one was accepted, and the error code, if there was an error."""
        sample = self._samples.images[index : index + 1]
        try:
            return await client.predict(sample, worker=self._worker, wait_s=OUTCOME_TIMEOUT_S), None
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
