"""What the controller answers, typed. Fields that a newer controller adds are ignored."""

from __future__ import annotations

from math import exp, isclose
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Status = Literal["queued", "running", "succeeded", "failed", "expired", "cancelled"]
FINAL_STATUSES: frozenset[Status] = frozenset({"succeeded", "failed", "expired", "cancelled"})
INT64_MAX = 2**63 - 1


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What one sample was taken for.

    Attributes:
        predicted: Class, or value of a regression. None where that is no finite number, and where a score is NaN.
        scores: Score per class as the model gives them, or None where it gives none. A score that is NaN or infinite
            is None.
    """

    predicted: int | float | None = msgspec.field(name="class")
    scores: tuple[int | float | None, ...] | None = None

    @property
    def confidence(self) -> float | None:
        """Probability of the predicted class, a fraction; scores that are no distribution pass softmax.

        None where there are no scores, or not all of them are finite.
        """
        scores = [score for score in self.scores or () if score is not None]
        if not scores or len(scores) != len(self.scores or ()):
            return None
        top = max(scores)
        if min(scores) >= 0 and isclose(sum(scores), 1, abs_tol=1e-3):
            return top
        return 1 / sum(exp(score - top) for score in scores)


class JobProblem(msgspec.Struct, frozen=True):
    """Why a job has no prediction: a stable code and one sentence."""

    code: str
    detail: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted request: its receipt and, once there is one, its outcome.

    Attributes:
        id: What `result`, `wait` and `cancel` take.
        worker: Worker number of the queue it was sent to.
        val_accuracy: Fraction in [0, 1] of the chosen version when it was chosen, or None.
        policy: Rule that chose the queue.
        forced: Whether the request named the queue.
        predictions: One per sample; empty unless succeeded.
        scores_dtype: NumPy name of the scores' dtype.
        inference_ms: Forward pass of the whole batch.
        queue_wait_ms: From the request's arrival to a worker taking the batch.
        end_to_end_ms: From the request's arrival to the outcome, by Redis's clock.
        batch_samples: Samples in that forward pass.
        worker_id: Process that ran it.
        error: Why there is no prediction, where the job has another outcome.
    """

    id: str
    status: Status
    worker: int
    model_name: str
    model_version: int
    val_accuracy: float | None = None
    policy: str = ""
    forced: bool = False
    predictions: tuple[Prediction, ...] = ()
    scores_dtype: str = "float32"
    inference_ms: float | None = None
    queue_wait_ms: float | None = None
    end_to_end_ms: float | None = None
    batch_samples: int | None = None
    worker_id: str | None = None
    error: JobProblem | None = None

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return self.status in FINAL_STATUSES

    @property
    def classes(self) -> NDArray[Any]:
        """Classes or values of all samples: int64, uint64 or float64, shape (n_samples,); None becomes NaN."""
        values = [each.predicted for each in self.predictions]
        integers = [value for value in values if isinstance(value, int)]
        if len(integers) < len(values):
            return np.array(values, np.float64)
        return np.array(integers, np.uint64 if max(integers, default=0) > INT64_MAX else np.int64)

    @property
    def scores(self) -> NDArray[Any] | None:
        """Scores of all samples: the model's own dtype, shape (n_samples, n_scores); None becomes NaN.

        None where the model gives no scores, or the job did not succeed.
        """
        rows = [each.scores for each in self.predictions if each.scores is not None]
        return np.array(rows, self.scores_dtype) if rows else None


class Problem(msgspec.Struct, frozen=True):
    """The members of a problem document (RFC 9457) that say more than the status."""

    code: str = ""
    detail: str = ""


class Latency(msgspec.Struct, frozen=True):
    """Inference latency of one forward pass, in ms: the last one, and percentiles over a window."""

    last: float | None = None
    p50: float | None = None
    p99: float | None = None


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that consumes a worker number's queue.

    Attributes:
        pid: Of the process that serves.
        main_pid: Of its parent, which takes signals.
    """

    worker_id: str
    state: str = ""
    host: str = ""
    pid: int = 0
    main_pid: int = 0
    device: str = ""


class InputShape(msgspec.Struct, frozen=True):
    """Input of a model version: NumPy element type, and shape with -1 for the number of samples."""

    dtype: str
    shape: tuple[int, ...]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind one worker number.

    Attributes:
        worker: The worker number.
        live_workers: Processes that consume its queue.
        backlog_jobs: Jobs accepted and not done.
        oldest_job_age_s: Age of the oldest of them; 0 where there is none.
        inference_ms: Latency of a forward pass.
        replicas: The processes.
        input: What a sample must look like.
    """

    worker: int
    model_name: str
    model_version: int
    val_accuracy: float | None = None
    live_workers: int = 0
    backlog_jobs: int = 0
    oldest_job_age_s: float = 0.0
    inference_ms: Latency = Latency()
    jobs_done: int = 0
    jobs_failed: int = 0
    replicas: tuple[Replica, ...] = ()
    input: InputShape | None = None


class Pool(msgspec.Struct, frozen=True):
    """Answer of `GET /workers`."""

    workers: tuple[WorkerInfo, ...]


class Readiness(msgspec.Struct, frozen=True):
    """Whether the controller can accept jobs, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()
