"""The documents of the HTTP API. Controller and client both import them; the OpenAPI document is made from them.

Readers ignore fields that a newer controller adds. A field with a default came after the first release, or is left
out where there is nothing to say.
"""

from __future__ import annotations

from math import exp, isclose
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from modelyard.errors import OutputsMissingError
from modelyard.outputs import Arrays, make_frame, to_arrays, to_table

T = TypeVar("T")
# Left out of the JSON where there is nothing to say, never null; None to readers.
Later: TypeAlias = Annotated[T | None, Meta(extra_json_schema={"nullable": False})]
Status = Literal["queued", "running", "succeeded", "failed", "expired", "cancelled"]
FINAL_STATUSES: frozenset[Status] = frozenset({"succeeded", "failed", "expired", "cancelled"})
BatchStatus = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
FINAL_BATCH_STATUSES: frozenset[BatchStatus] = frozenset({"succeeded", "failed", "cancelled"})
POLICIES = ["highest_val_accuracy", "best_metric", "champion", "newest_version", "forced", "unknown"]
# What may put a version before the others of its endpoint.
CRITERIA = [
    *("request", "only_candidate", "val_accuracy", "metric", "champion", "expected_wait", "newer_version"),
    *("deadline", "unknown"),
]
INT64_MAX = 2**63 - 1


def says(description: str, **schema: Any) -> Meta:
    """What the OpenAPI document says of a field, besides its type."""
    return Meta(description=description, extra_json_schema=schema or None)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    code: Annotated[str, says("stable; for programs")]
    detail: Annotated[str, says("the error and the expected value; for people")]
    id: Annotated[Later[str], says("the accepted job, if there is one")] = None
    result_url: Annotated[Later[str], says("path of its outcome")] = None
    max_body_bytes: Annotated[Later[int], says("of a request that was too large: the largest body")] = None
    max_samples: Annotated[Later[int], says("of a request that was too large: the most samples")] = None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The prediction for one sample."""

    predicted: Annotated[
        int | float | None,
        says("the class, or the value of a regression; null if it is not finite or a score is NaN"),
    ] = msgspec.field(name="class", default=None)
    label: Annotated[
        Any, says("name of the class, where a version that declares itself a classification has names")
    ] = None
    value: Annotated[
        Later[float], says("of a version that declares itself a regression, in place of `class`")
    ] = None
    scores: Annotated[
        tuple[int | float | None, ...] | None,
        says("score per class as the model returns it; null if it returns none; NaN and infinities are null"),
    ] = None

    @property
    def answer(self) -> Any:
        """What the model answered for the sample: its value or scores, else the class, else the label."""
        if self.scores is not None:
            return list(self.scores)
        return next((each for each in (self.value, self.predicted) if each is not None), self.label)

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


class RankedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that competed for a request, and its figure."""

    worker: Annotated[int, says("worker number of its queue")]
    model_name: str
    model_version: int
    val_accuracy: Annotated[float | None, says("fraction in [0, 1]")]
    val_accuracy_source: Annotated[
        str, says("where it was logged: `model`, `run` or `tag`; empty without one")
    ]
    dataset: Annotated[str, says("name of its data set; empty if none was logged")]
    dataset_digest: Annotated[str, says("digest of that data set; empty if it was not declared")]
    dataset_rows: Annotated[int, says("rows of that data set; 0 if unknown")]
    is_champion: Annotated[bool, says("whether the alias `champion`, or the endpoint's default, names it")]
    metric: Annotated[str, says("the metric that ranks it")] = "val_accuracy"
    metric_value: Annotated[float | None, says("value of that metric; null if unknown")] = None
    expected_answer_s: Annotated[
        float | None, says("expected time to an answer; null unless that decided the route")
    ] = None


class ExcludedVersion(msgspec.Struct, frozen=True):
    """A version of the endpoint that was no candidate."""

    model_name: str
    model_version: int
    reason: Annotated[str, says("stable name, such as `disabled`, `pinned` or `circuit_open`")]
    why: Annotated[str, says("the reason, for people")]


class RouteExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request went to its version, and what else was possible."""

    endpoint: Annotated[str, says("name of the endpoint; of a forced request, the model")]
    worker: Annotated[int, says("worker number of the chosen queue")]
    model_name: str
    model_version: int
    input: Annotated[str, says("the input that the version takes, in words")] = ""
    policy: Annotated[str, says("rule that chose the queue", enum=POLICIES)]
    decided_by: Annotated[str, says("what put the version before the others", enum=CRITERIA)]
    why: Annotated[str, says("the same in one sentence, for people")]
    metric: Annotated[str, says("the metric that ranks the version")] = "val_accuracy"
    direction: Annotated[str, says("which value of the metric is better", enum=["higher", "lower"])] = (
        "higher"
    )
    comparable: Annotated[
        bool | None,
        says(
            "whether the figures are of one metric and one declared data set; null where fewer than two competed"
        ),
    ] = None
    degraded: Annotated[bool, says("whether a better version was left because it would be late")] = False
    cold: Annotated[
        bool, says("whether no worker of the version is ready, so that the job waits for one to start")
    ] = False
    tied: Annotated[tuple[int, ...], says("worker numbers of the tie set of the best version")] = ()
    tie_band: Annotated[
        float | None,
        says(
            "the largest difference from the best figure that is a tie; null without others, or with `tie_p`"
        ),
    ] = None
    tie_p: Annotated[
        float | None,
        says(
            "p-value of McNemar's exact test of the best version and the next, a tie from 0.05; null unless both say "
            "which rows they got right"
        ),
    ] = None
    candidates: Annotated[tuple[RankedVersion, ...], says("best first; at most 20")] = ()
    n_candidates: Annotated[int, says("number of candidates")] = 0
    excluded: Annotated[tuple[ExcludedVersion, ...], says("at most 20")] = ()


class RoutePlan(msgspec.Struct, frozen=True):
    """Answer of `GET /route`: where a request would go now, for each input that the endpoint takes."""

    routes: Annotated[tuple[RouteExplanation, ...], says("best first; a body takes the first that it fits")]
    deadline_s: Annotated[float | None, says("deadline that the request would have")] = None
    wait_s: Annotated[float | None, says("how long the request would wait for its outcome")] = None


class WebhookState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the delivery of a job to its `callback_url` has come."""

    url: str
    status: Annotated[
        Literal["pending", "delivered", "failed"], says("`failed` after the last attempt, or a 410")
    ]
    attempts: Annotated[int, says("number of attempts; absent before the first one")] = 0
    next_attempt_at_ms: Annotated[Later[float], says("when the next attempt is due, Redis's clock")] = None
    delivered_at_ms: Annotated[Later[float], says("when it was answered 2xx, Redis's clock")] = None
    last_error: Annotated[Later[str], says("why the last attempt failed")] = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted request: its receipt and, once there is one, its outcome."""

    id: str
    status: Status
    worker: Annotated[int, says("worker number of its queue")]
    model_name: str
    model_version: int
    val_accuracy: Annotated[float | None, says("fraction in [0, 1] at the time of routing")]
    policy: Annotated[
        str, says("rule that chose the queue; `unknown` if the job's record was damaged", enum=POLICIES)
    ]
    forced: Annotated[bool, says("whether the request named the queue")]
    result_url: str
    degraded: Annotated[
        bool, says("a better version was left because it would have answered too late; absent if false")
    ] = False
    cold: Annotated[
        bool,
        says("no worker of the version was ready, so that the job waits for one to start; absent if false"),
    ] = False
    comparable: Annotated[
        Later[bool],
        says("false where the version was chosen by figures of different or undeclared data sets"),
    ] = None
    metric: Annotated[Later[str], says("the metric that ranks the version; absent if it is val_accuracy")] = (
        None
    )
    direction: Annotated[
        Later[str], says("which value of that metric is better", enum=["higher", "lower"])
    ] = None
    metric_value: Annotated[float | None, says("value of that metric at the time of routing")] = None
    route: Annotated[Later[RouteExplanation], says("with `explain=true`: why it went to its version")] = None
    resent_from: Annotated[Later[str], says("the quarantined job that this one repeats")] = None
    rerouted_from: Annotated[
        Later[str], says("the version that it waited for until that was retired, as `NAME/3`")
    ] = None
    webhook: Annotated[
        Later[WebhookState], says("of a job with a `callback_url`, in answers of `GET /results`")
    ] = None
    worker_id: Annotated[str | None, says("process that ran the job")] = None
    batch_samples: Annotated[Later[int], says("samples in the forward pass")] = None
    inference_ms: Annotated[Later[float], says("duration of the forward pass")] = None
    queue_wait_ms: Annotated[
        Later[float], says("time from the request's arrival to the start of its batch")
    ] = None
    end_to_end_ms: Annotated[Later[float], says("time from the request's arrival to its outcome")] = None
    predictions: Annotated[tuple[Prediction, ...], says("one per sample; absent unless succeeded")] = ()
    scores_dtype: Annotated[str, says("NumPy name of the scores' dtype; absent for float32")] = "float32"
    raw_outputs: Annotated[
        Any,
        says(
            "what the model answered, as MLflow would; absent for a version that takes one plain tensor and declares "
            "its task, if `predictions` say it in full"
        ),
    ] = msgspec.field(name="outputs", default=None)
    outputs_dtype: Annotated[
        Later[str | dict[str, str]],
        says("NumPy names of the dtypes of `outputs`, where it is an array or named arrays"),
    ] = None
    error: Later[JobProblem] = None

    @property
    def outputs(self) -> Any:
        """What the model answered, as MLflow's `predictions`: nested lists, a dict, a list of dicts, text.

        None unless the job succeeded.
        """
        if self.raw_outputs is None and self.predictions:
            return [each.answer for each in self.predictions]
        return self.raw_outputs

    @property
    def has_further_outputs(self) -> bool:
        """Whether `outputs` hold more than the predictions."""
        return self.raw_outputs is not None and self.raw_outputs != [each.answer for each in self.predictions]

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

    def to_numpy(self) -> Arrays:
        """What the model answered as an array, in the model's own dtype, or as one for each name of its outputs.

        Where the answer is a classification: its scores, shape (n_samples, n_scores), or else its classes, shape
        (n_samples,). Times are text in ISO format and bytes are base64, as in JSON; None becomes NaN among floats.
        Ragged lists, such as the parts of a tuple, are an array of lists.

        Raises:
            OutputsMissingError: The job has not succeeded, or the model answered null.
        """
        self._require_outputs()
        if self.raw_outputs is not None:
            return to_arrays(self.raw_outputs, self.outputs_dtype)
        return self.classes if self.scores is None else self.scores

    def to_frame(self) -> Any:
        """What the model answered as a table of pandas, or of polars if pandas is not installed.

        Columns without names are numbered from "0"; a classification has `class`, and `score_0` and on.

        Raises:
            OutputsMissingError: The job has not succeeded, or the model answered null.
            OutputsNotTabularError: Its named outputs have different numbers of rows.
            ConfigurationError: Neither is installed.
        """
        self._require_outputs()
        scores = self.scores
        if self.has_further_outputs or (self.raw_outputs is not None and scores is None):
            return to_table(self.raw_outputs, self.outputs_dtype)
        columns = {"class": self.classes}
        if scores is not None:
            columns |= {f"score_{place}": scores[:, place] for place in range(scores.shape[1])}
        return make_frame(columns)

    def _require_outputs(self) -> None:
        if self.status != "succeeded":
            remedy = "" if self.done else "; wait for its outcome first"
            raise OutputsMissingError(f"job {self.id} is {self.status} and has no outputs{remedy}")
        if self.outputs is None:
            raise OutputsMissingError(f"job {self.id} has no outputs: the model answered null")

    @property
    def scores(self) -> NDArray[Any] | None:
        """Scores of all samples: the model's own dtype, shape (n_samples, n_scores); None becomes NaN.

        None where the model gives no scores, or the job did not succeed.
        """
        rows = [each.scores for each in self.predictions if each.scores is not None]
        return np.array(rows, self.scores_dtype) if rows else None


class Jobs(msgspec.Struct, frozen=True):
    """Answer of `GET /results`: the jobs in the order of the ids, each with the problem of its own answer instead."""

    jobs: tuple[
        Annotated[
            msgspec.Raw,
            says(
                "a job, or a problem where the job cannot be read",
                anyOf=[{"$ref": f"#/components/schemas/{name}"} for name in ("Job", "Problem")],
            ),
        ],
        ...,
    ]


class Latency(msgspec.Struct, frozen=True):
    """Inference latency of one forward pass, in ms: the last one, and percentiles over a window."""

    last: float | None = None
    p50: float | None = None
    p99: float | None = None


class RequirementDifference(msgspec.Struct, frozen=True):
    """A package that a model version requires and its worker lacks, or has in another version."""

    package: Annotated[str, says("its name; `python` is Python itself")]
    required: Annotated[str, says("version specifier, such as `==1.5.0`; a bare version for Python")]
    installed: Annotated[str | None, says("version in the worker's environment")]


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that consumes a worker number's queue."""

    worker_id: str
    state: Annotated[str, says("state of the worker", enum=["starting", "ready", "draining"])]
    run_id: Annotated[str, says("MLflow run of its model version; empty if there is none")]
    model_id: Annotated[str | None, says("MLflow's id of its model, or the digest of its files")] = None
    registry: Annotated[str, says("registry of its model, without secrets")] = ""
    started_at_ms: Annotated[float, says("Redis's clock")]
    heartbeat_at_ms: Annotated[float, says("Redis's clock")]
    jobs_done: int
    jobs_failed: int
    batches_done: int
    batch_samples_last: int
    batch_samples_mean: float
    inference_ms: Latency
    host: str
    pid: Annotated[int, says("of the serving process")]
    main_pid: Annotated[int, says("of the process that takes signals: its supervisor or alias follower")]
    device: Annotated[str, says("`cpu` or `cuda:N`")]
    unreadable: Annotated[int, says("number of unreadable messages and batches")]
    warnings: Annotated[tuple[str, ...], says("problems of its model that do not prevent serving")] = ()
    requirements: Annotated[
        tuple[RequirementDifference, ...],
        says("differences of its environment from the version's requirements"),
    ] = ()
    follows: Annotated[str, says("alias that it follows, or `latest`; empty if its version is fixed")] = ""
    managed_by: Annotated[str, says("`up` if `modelyard up` starts and stops it; otherwise empty")] = ""
    memory_bytes: Annotated[int, says("resident memory of the serving process; 0 if unknown")] = 0


class ImageInput(msgspec.Struct, frozen=True):
    """How a version takes images."""

    width: Annotated[int | None, says("in pixels; null if any")]
    height: Annotated[int | None, says("in pixels; null if any")]
    channels: Annotated[int, says("1 for grey, 3 for RGB, 4 for RGBA")]
    layout: Annotated[str, says("order of a row's dimensions: `CHW`, `HWC` or `HW`")]
    white: Annotated[int, says("value of a white pixel: 255, or 1 where values are fractions")]


class InputShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """Input of a model version: its contract, read from its signature."""

    dtype: Annotated[str, says("of a tensor: NumPy name of the element type")] = ""
    shape: Annotated[tuple[int, ...], says("of a tensor: -1 for the number of samples")] = ()
    kind: Annotated[str, says("`tensor`, `tensors`, `columns` or `any`")] = "tensor"
    tensors: Annotated[tuple[dict[str, Any], ...], says("name, dtype and shape of each; -1 is free")] = ()
    columns: Annotated[
        tuple[dict[str, Any], ...], says("name and type of each, and whether it is required")
    ] = ()
    params: Annotated[tuple[dict[str, Any], ...], says("name, type and default of each")] = ()
    image: Annotated[ImageInput | None, says("how images are taken, if they are")] = None


class StartFailure(msgspec.Struct, frozen=True):
    """Why the workers of a wanted version end before they are ready; each is started again."""

    reason: str
    since_ms: Annotated[float, says("when the first start failed, Unix time")]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker number: its model version, its workers and its backlog."""

    worker: Annotated[int, says("the worker number")]
    model_name: str
    model_version: int
    queue: Annotated[str, says("Celery queue of the version")]
    val_accuracy: Annotated[
        float | None, says("fraction in [0, 1]; null if unknown, and if another metric ranks the version")
    ]
    input: Annotated[InputShape | None, says("expected input; null if no worker is alive")]
    live_workers: Annotated[int, says("number of ready workers")]
    backlog_jobs: Annotated[int, says("accepted jobs without an outcome")]
    oldest_job_age_s: Annotated[float, says("age of the oldest of these jobs; 0 if there is none")]
    expected_wait_s: Annotated[
        float | None, says("expected wait of a job that arrives now; null if no worker is ready")
    ]
    inference_ms: Latency
    jobs_done: int
    jobs_failed: int
    replicas: tuple[Replica, ...]
    example: Annotated[
        Any, says("a request body that the version has answered; null where none is known")
    ] = None
    aliases: Annotated[tuple[str, ...], says("the registry's aliases of this version")] = ()
    val_accuracy_source: Annotated[
        str, says("where the metric was logged: `model`, `run` or `tag`; empty without a value")
    ] = ""
    dataset: Annotated[str, says("name of the data set of the metric; empty if none was logged")] = ""
    dataset_rows: Annotated[int, says("rows of that data set; 0 if unknown")] = 0
    val_accuracy_half_width: Annotated[
        float | None,
        says("half of the width of the 95 % interval of val_accuracy; null if the number of rows is unknown"),
    ] = None
    metric: Annotated[str, says("the metric that ranks it")] = "val_accuracy"
    direction: Annotated[str, says("which value of the metric is better", enum=["higher", "lower"])] = (
        "higher"
    )
    metric_value: Annotated[float | None, says("value of that metric; null if unknown")] = None
    rank: Annotated[
        int | None,
        says("place in the order of the routing policy, best first from 1; null if it takes no requests"),
    ] = None
    chosen: Annotated[bool, says("whether it has the best rank of the versions with the same input")] = False
    excluded: Annotated[
        str,
        says(
            "why routing does not choose it; empty if it may",
            enum=["", "disabled", "retired", "pinned", "circuit_open"],
        ),
    ] = ""
    excluded_why: Annotated[str, says("the same in words: who decided it, when and why")] = ""
    circuit_open: Annotated[
        bool, says("whether its jobs keep failing; it is chosen all the same while no other version is ready")
    ] = False
    cold: Annotated[
        bool, says("whether no worker is ready, but requests may queue for it within their deadline")
    ] = False
    scaled_to: Annotated[
        int | None, says("workers that an operator asked for; null where the pool decides their number")
    ] = None
    start_failure: Annotated[
        StartFailure | None, says("why no worker of it starts, while it is wanted; null if nothing failed")
    ] = None


class Pool(msgspec.Struct, frozen=True):
    """Answer of `GET /workers`: worker numbers that have a live worker, a backlog, or one that does not start."""

    workers: tuple[WorkerInfo, ...]


class QuarantinedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job in quarantine: its workers died while they ran it."""

    job_id: str
    quarantined_at_ms: Annotated[float, says("when its outcome was written, Redis's clock")]
    worker: Annotated[int, says("worker number of its queue")]
    model_name: str
    model_version: int
    n_samples: int
    resent_as: Annotated[str | None, says("job that it was last sent again as")]


class Quarantine(msgspec.Struct, frozen=True):
    """Answer of `GET /quarantine`, newest first."""

    jobs: tuple[QuarantinedJob, ...]


class PoolFinding(msgspec.Struct, frozen=True):
    """Something about the pool that an operator should look at."""

    kind: Annotated[str, says("a word for programs, such as `data_lost`, `overdue` or `note`")]
    subject: Annotated[str, says("what it is about")]
    detail: Annotated[str, says("one sentence, for people")]


class Findings(msgspec.Struct, frozen=True):
    """Answer of `GET /findings`: what `modelyard doctor` finds without reading all data."""

    findings: tuple[PoolFinding, ...]


class VersionControl(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decided about a version, or about a model whose pin was removed."""

    model_name: str
    model_version: int | None
    state: Annotated[
        str,
        says(
            "what was done",
            enum=["disabled", "enabled", "retired", "pinned", "unpinned", "forgotten", "scaled", "unscaled"],
        ),
    ]
    by: Annotated[str, says("name of the operator's API key; empty without keys")]
    reason: str
    open_jobs: Annotated[int, says("accepted jobs of the version without an outcome")]
    rerouted_jobs: Annotated[int, says("waiting jobs that were moved to another version")] = 0
    dry_run: Annotated[bool, says("whether it was checked only; `state` is then what would be done")] = False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the log of decisions."""

    at_ms: Annotated[float, says("Redis's clock")]
    kind: Annotated[
        str,
        says(
            "the `state` of an operator's decision, `circuit_opened`, `circuit_closed`, or `chosen` where an endpoint "
            "chose another version and went on choosing it"
        ),
    ]
    model_name: str
    model_version: int | None
    by: Annotated[str, says("name of the operator's API key; empty for the other kinds, or without keys")]
    reason: str
    endpoint: Annotated[str, says("of `chosen`: the endpoint that chose the version; otherwise empty")] = ""


class DecisionList(msgspec.Struct, frozen=True):
    """Answer of `GET /decisions`, newest first."""

    decisions: tuple[Decision, ...]


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /scale/{model}/{version}`, for autoscalers."""

    jobs: Annotated[int, says("accepted jobs without an outcome")]
    running: Annotated[int, says("batches that workers run")]
    live_replicas: Annotated[int, says("ready workers")]
    expected_wait_s: Annotated[
        float, says("expected wait of a job that arrives now; 0 without a ready worker")
    ]
    wanted_replicas: Annotated[int, says("workers with which that wait would be the configured one")]


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One job in a list for operators: where it went, and how long each step took."""

    id: str
    status: Status
    worker: Annotated[int, says("worker number of its queue")]
    model_name: str
    model_version: int
    policy: Annotated[str, says("rule that chose the queue")]
    forced: Annotated[bool, says("whether the request named the queue")]
    caller: Annotated[str, says("name of the caller's API key; empty without one")]
    n_samples: int
    received_at_ms: Annotated[float, says("when the request arrived, Redis's clock")]
    deadline_ms: Annotated[float, says("when the job expires, Redis's clock")]
    attempts: Annotated[int, says("number of times that a worker claimed it")]
    end_to_end_ms: Annotated[float, says("time from the request's arrival to its outcome, or until now")]
    worker_id: Annotated[str | None, says("process that ran it, or runs it")] = None
    finished_at_ms: Annotated[float | None, says("when its outcome was written, Redis's clock")] = None
    queue_wait_ms: Annotated[float | None, says("time from the request's arrival to its batch's start")] = (
        None
    )
    inference_ms: Annotated[float | None, says("duration of the forward pass")] = None
    batch_samples: Annotated[int | None, says("samples in the forward pass")] = None
    error_code: Annotated[str, says("of a failed, expired or cancelled job")] = ""


class JobList(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of `GET /jobs`: open jobs oldest first, or finished jobs newest first."""

    jobs: tuple[JobSummary, ...]
    next: Annotated[Later[str], says("cursor of the next page; absent on the last one")] = None


class BatchFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file whose rows are predicted into another file."""

    id: str
    status: BatchStatus
    batch_url: Annotated[str, says("path of this document")]
    output_url: Annotated[Later[str], says("path of the output, once it succeeded")] = None
    errors_url: Annotated[
        Later[str], says("path of the rows without a prediction and their reasons, once it succeeded")
    ] = None
    created_at_ms: Annotated[float, says("when the file had arrived, the controller's clock")]
    ended_at_ms: Annotated[Later[float], says("when it ended")] = None
    rows: Annotated[int | None, says("number of rows of the file; null where only reading all would tell")]
    rows_done: Annotated[int, says("rows that are finished, with those that failed")]
    rows_failed: Annotated[int, says("rows without a prediction")]
    rows_per_s: Annotated[float, says("rate since the work last began or was resumed")]
    progress: Annotated[float, says("fraction of the file that was read")]
    error: Annotated[Later[JobProblem], says("why it failed")] = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL_BATCH_STATUSES


class BatchFiles(msgspec.Struct, frozen=True):
    """Answer of `GET /batches`: the caller's batches, newest first; an operator's answer has all."""

    batches: tuple[BatchFile, ...]


class Health(msgspec.Struct, frozen=True):
    """Answer of `GET /healthz`: the process is alive."""

    status: Literal["alive"]


class Readiness(msgspec.Struct, frozen=True):
    """Whether the controller can do its work, and if not, why."""

    ready: bool
    reasons: tuple[str, ...]


DOCUMENTS: tuple[type[msgspec.Struct], ...] = (
    Problem,
    Job,
    Jobs,
    JobList,
    BatchFile,
    BatchFiles,
    VersionControl,
    DecisionList,
    Scale,
    Pool,
    RoutePlan,
    Quarantine,
    Findings,
    Health,
    Readiness,
)
