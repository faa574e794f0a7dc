"""Errors that only occur in a client; errors in answers of the controller are in `modelyard.errors`.

```
ModelyardError
├── UnavailableError
│   └── ControllerUnreachableError  no answer from the controller's address
├── AnswerUnreadableError           an answer that no controller of this version gives
├── WebhookInvalidError             not a webhook of this secret, or too old
├── RecordsError                    the records file or the plot cannot be written
├── OutputsNotJoinableError         the parts of samples that were cut cannot be answered as one
├── WaitTimeoutError                the job has no outcome yet; holds the job
├── BatchUnsuccessfulError          a batch failed, was cancelled or has not ended yet; holds the batch
└── JobUnsuccessfulError            the job has an outcome, and it is no prediction; holds the job
    ├── JobFailedError
    ├── JobExpiredError
    └── JobCancelledError
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import ModelyardError, UnavailableError

if TYPE_CHECKING:
    from modelyard.schemas import BatchFile, Job


class ControllerUnreachableError(UnavailableError):
    """The controller's address does not answer, or the connection was lost."""

    code = "controller_unreachable"


class AnswerUnreadableError(ModelyardError):
    """The answer does not have the format of a controller of this version."""

    code = "answer_unreadable"


class WebhookInvalidError(ModelyardError):
    """A request is not a webhook that a controller with this secret has just sent."""

    code = "webhook_invalid"


class RecordsError(ModelyardError):
    """The records file or the plot cannot be written."""

    code = "records_unwritable"


class OutputsNotJoinableError(ModelyardError):
    """The samples were larger than a request may be, and the version does not answer a row for each row."""

    code = "outputs_not_joinable"


class WaitTimeoutError(ModelyardError):
    """The wait timed out before the job had an outcome; the job continues, and `wait` can be called again.

    Attributes:
        job: The job as last seen.
    """

    code = "wait_timeout"

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} is still {job.status}; wait longer, or look again later")
        self.job = job


class BatchUnsuccessfulError(ModelyardError):
    """A batch failed, was cancelled, or has not ended within the wait.

    Attributes:
        batch: The batch as last seen.
    """

    code = "batch_unsuccessful"

    def __init__(self, batch: BatchFile) -> None:
        reason = f": {batch.error.detail} ({batch.error.code})" if batch.error else ""
        super().__init__(f"batch {batch.id} is {batch.status}{reason}")
        self.batch = batch


class JobUnsuccessfulError(ModelyardError):
    """The job has an outcome, but no prediction.

    Attributes:
        job: The job with its outcome.
    """

    code = "job_unsuccessful"

    def __init__(self, job: Job) -> None:
        told = job.error if job.status == "failed" else None
        reason = f": {told.detail} ({told.code})" if told else ""
        model = f"{job.model_name} version {job.model_version}"
        super().__init__(f"job {job.id} on {model} {self.what_happened}{reason}")
        self.job = job

    what_happened = "did not succeed"


class JobFailedError(JobUnsuccessfulError):
    """The model could not predict the samples."""

    code = "job_failed"
    what_happened = "failed"


class JobExpiredError(JobUnsuccessfulError):
    """The job's deadline passed before a worker took it."""

    code = "job_expired"
    what_happened = "expired before a worker took it; ask for a later deadline, or add workers"


class JobCancelledError(JobUnsuccessfulError):
    """The job was cancelled."""

    code = "job_cancelled"
    what_happened = "was cancelled"
