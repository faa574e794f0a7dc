"""Errors in answers of a controller, by their codes, and errors of the commands. No HTTP here.

```
ModelyardError
├── ConfigurationError            a setting is wrong, or an environment lacks something
├── InputError                    a request cannot be turned into samples
│   ├── BodyNotJsonError
│   ├── BodyKeyError
│   ├── BodyNotArrayError         not the NumPy file or MessagePack that its content type says
│   ├── InputShapeError
│   ├── InputNotNumericError
│   ├── InputNotFiniteError
│   ├── InputEmptyError
│   ├── InputTypeError            a value is not of its column's or tensor's type
│   ├── ParamsError               `params` are not what the version takes
│   ├── BodyCodingError           not the gzip or deflate that its content coding says
│   ├── ParameterError
│   ├── ContradictionError
│   ├── WebhookNotAllowedError   the job may not be delivered to its callback_url
│   ├── EndpointRequiredError     several endpoints are served, and the request names none
│   └── MalformedRequestError     the bytes that arrived are not HTTP
├── TooLargeError                 more bytes or samples than the limits
│   └── HeadTooLargeError         the request's line and headers
├── RequestTimeoutError           the request did not arrive in time
├── UnsupportedError              a body of a kind that is not read
│   ├── UnsupportedTypeError
│   └── UnsupportedCodingError
├── HostNotAllowedError           sent to a name that is not allowed
├── OriginNotAllowedError         sent by a web page of another site
├── UnauthenticatedError          no API key, or none that is valid
├── ForbiddenError                the API key lacks the role
│   └── RegistryWebhookInvalidError  a webhook of MLflow is not signed by the secret
├── NotFoundError
│   ├── UnknownWorkerError
│   ├── UnknownModelError
│   ├── UnknownEndpointError
│   ├── ModelNotServedError       the version was retired
│   ├── UnknownJobError
│   ├── RegistryWebhooksOffError  the controller takes no webhooks of MLflow
│   ├── BatchesOffError           the controller takes no batch files
│   └── UnknownBatchError
├── JobGoneError                  the job's outcome was kept for its time and is no longer
├── ConflictError
│   ├── VersionInUseError         a version to be forgotten has workers or jobs
│   ├── NotScalableError          a version has no worker that `modelyard up` started
│   ├── JobNotCancellableError
│   ├── JobNotQuarantinedError
│   ├── BatchNotCancellableError
│   ├── BatchWithoutOutputError   the batch has not ended, or failed
│   └── IdempotencyConflictError  the key was used for another request
├── QueueFullError
├── RateLimitError                the client has asked too often
├── UnavailableError
│   ├── NoCandidateError          no live worker can take the request
│   ├── DrainingError             the controller is stopping
│   ├── TooManyPagesError         as many pages are open as a controller serves
│   ├── IdempotencyPendingError   another post with the key is being accepted
│   └── LedgerUnavailableError    Redis does not answer
│       └── LedgerFullError       Redis has no room for new jobs
├── OutputsMissingError           an array or a table of a job without outputs
├── OutputsNotTabularError        a table of named outputs that have different numbers of rows
└── DatasetError                  a data set is missing, corrupt or not what it claims to be
```

`modelyard.client_errors` adds the errors of clients, and the server's `app.server_errors` those of its processes.
"""

from __future__ import annotations

from modelyard.redaction import redacted

SHOWN = 300  # characters of a foreign error's text


class ModelyardError(Exception):
    """Root of the tree.

    Args:
        detail: One sentence for the user: what was wrong, what was expected, what to do. Secrets are removed from it.
        retry_after_s: Seconds after which a retry is worthwhile, if known.
    """

    code = "internal_error"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        self.detail = redacted(detail)
        super().__init__(self.detail)
        self.retry_after_s = retry_after_s


def first_line(error: Exception) -> str:
    """The first line of a foreign error's text; the rest is for its developers.

    Libraries put errors into errors: a text that is too long gives way to that of the system's error at its bottom.
    """
    line = redacted((str(error).strip() or type(error).__name__).splitlines()[0])
    if len(line) <= SHOWN:
        return line
    cause: BaseException | None = error
    while cause and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return (redacted(str(cause)) if cause else line)[:SHOWN]


class ConfigurationError(ModelyardError):
    """A setting is wrong, or the environment lacks something that a command needs."""

    code = "configuration_invalid"


class InputError(ModelyardError):
    """A request cannot be turned into samples."""

    code = "input_invalid"


class BodyNotJsonError(InputError):
    """The body is not a JSON document."""

    code = "body_not_json"


class BodyKeyError(InputError):
    """The body is JSON, but not an object with exactly one of the keys that hold samples."""

    code = "body_wrong_key"


class BodyNotArrayError(InputError):
    """The body is not the NumPy file or the MessagePack that its content type says."""

    code = "body_not_array"


class BodyCodingError(InputError):
    """The body cannot be unpacked as its content coding says."""

    code = "body_wrong_coding"


class InputShapeError(InputError):
    """The array is ragged or does not fit the input contract."""

    code = "input_wrong_shape"


class InputNotNumericError(InputError):
    """The array holds something that is not a number of the contract's dtype."""

    code = "input_not_numeric"


class InputNotFiniteError(InputError):
    """The array holds NaN or an infinity, or a number that overflows the contract's dtype."""

    code = "input_not_finite"


class InputEmptyError(InputError):
    """The array holds no sample."""

    code = "input_empty"


class InputTypeError(InputError):
    """A value does not have the type of its column or tensor, or a required value is missing."""

    code = "input_wrong_type"


class ParamsError(InputError):
    """The parameters beside the data are unknown to the version, or not of their types."""

    code = "params_invalid"


class ParameterError(InputError):
    """A query parameter or header is malformed or out of range."""

    code = "parameter_invalid"


class ContradictionError(InputError):
    """Two parameters of one request exclude each other."""

    code = "parameters_contradict"


class EndpointRequiredError(InputError):
    """Several endpoints are served, and the request names none."""

    code = "endpoint_required"


class WebhookNotAllowedError(InputError):
    """The controller sends no webhooks, or none to this URL."""

    code = "webhook_not_allowed"


class MalformedRequestError(InputError):
    """The received bytes are not HTTP."""

    code = "request_malformed"


# A job whose error has one of these was refused: the model did not fail.
INPUT_CODES = frozenset({InputError.code, *(each.code for each in InputError.__subclasses__())})


class TooLargeError(ModelyardError):
    """More bytes or samples than the limits allow.

    Attributes:
        max_body_bytes: The controller's largest body, in an answer that tells it.
        max_samples: The controller's most samples per request, in an answer that tells it.
    """

    code = "request_too_large"
    max_body_bytes: int | None = None
    max_samples: int | None = None


class HeadTooLargeError(TooLargeError):
    """The request's line and headers are larger, or more, than the limits allow."""

    code = "head_too_large"


class RequestTimeoutError(ModelyardError):
    """The request did not arrive in time."""

    code = "request_timeout"


class UnsupportedError(ModelyardError):
    """The body is of a kind that is not read."""

    code = "unsupported"


class UnsupportedTypeError(UnsupportedError):
    """The body's content type is not one that is read."""

    code = "media_type_unsupported"


class UnsupportedCodingError(UnsupportedError):
    """The body's content coding is not one that is read."""

    code = "content_coding_unsupported"


class HostNotAllowedError(ModelyardError):
    """The request was sent to a name that is not allowed, where there are no API keys."""

    code = "host_not_allowed"


class OriginNotAllowedError(ModelyardError):
    """A web page of another site sent the request, where there are no API keys."""

    code = "origin_not_allowed"


class UnauthenticatedError(ModelyardError):
    """The request carries no API key, or one that is not valid."""

    code = "unauthenticated"


class ForbiddenError(ModelyardError):
    """The request's API key does not have the role that it needs."""

    code = "forbidden"


class RegistryWebhookInvalidError(ForbiddenError):
    """A webhook of MLflow is not signed by the controller's secret, is too old, or is no event of its registry."""

    code = "registry_webhook_invalid"


class NotFoundError(ModelyardError):
    """Something named in the request does not exist."""

    code = "not_found"


class UnknownWorkerError(NotFoundError):
    """No queue has this worker number."""

    code = "worker_unknown"


class UnknownModelError(NotFoundError):
    """No queue serves this model name or version."""

    code = "model_unknown"


class UnknownEndpointError(NotFoundError):
    """There is no endpoint of this name."""

    code = "endpoint_unknown"


class UnknownJobError(NotFoundError):
    """No job has this id."""

    code = "job_unknown"


class RegistryWebhooksOffError(NotFoundError):
    """The controller takes no webhooks of MLflow."""

    code = "registry_webhooks_off"


class BatchesOffError(NotFoundError):
    """The controller takes no batch files, because it has no folder for them."""

    code = "batches_off"


class UnknownBatchError(NotFoundError):
    """No batch of files has this id."""

    code = "batch_unknown"


class JobGoneError(ModelyardError):
    """The job existed; its outcome was kept for its retention time and is no longer."""

    code = "job_gone"


class ConflictError(ModelyardError):
    """The request does not fit the present state."""

    code = "conflict"


class ModelNotServedError(NotFoundError):
    """The version, or each version of the model, was retired."""

    code = "model_not_served"


class VersionInUseError(ConflictError):
    """A version to be forgotten has workers or jobs."""

    code = "version_in_use"


class NotScalableError(ConflictError):
    """A version to be scaled has no worker that `modelyard up` started."""

    code = "not_scalable"


class JobNotCancellableError(ConflictError):
    """The job is running or has an outcome already."""

    code = "job_not_cancellable"


class JobNotQuarantinedError(ConflictError):
    """Only a job in quarantine can be sent again."""

    code = "job_not_quarantined"


class BatchNotCancellableError(ConflictError):
    """The batch has ended already."""

    code = "batch_not_cancellable"


class BatchWithoutOutputError(ConflictError):
    """The batch has not ended, or it failed or was cancelled."""

    code = "batch_without_output"


class IdempotencyConflictError(ConflictError):
    """The idempotency key belongs to a different request."""

    code = "idempotency_conflict"


class QueueFullError(ModelyardError):
    """The queue's backlog is at its limit."""

    code = "queue_full"


class RateLimitError(ModelyardError):
    """The client has asked for more predictions than it may in a time."""

    code = "rate_limited"


class UnavailableError(ModelyardError):
    """Something that the request needs does not answer at present."""

    code = "unavailable"


class NoCandidateError(UnavailableError):
    """No live worker can take the request."""

    code = "no_candidate"


class DrainingError(UnavailableError):
    """The controller is stopping."""

    code = "draining"


class TooManyPagesError(UnavailableError):
    """As many pages are open at a controller as it serves."""

    code = "too_many_pages"


class IdempotencyPendingError(UnavailableError):
    """Another post with the idempotency key is being accepted, or has come in between."""

    code = "idempotency_pending"


class LedgerUnavailableError(UnavailableError):
    """Redis does not answer, or refuses writes."""

    code = "ledger_unavailable"


class LedgerFullError(LedgerUnavailableError):
    """Redis has reached its `maxmemory`: it accepts no new jobs and continues with existing ones."""

    code = "ledger_full"


class OutputsMissingError(ModelyardError):
    """The job has no outputs: it has not ended, did not succeed, or its model answered null."""

    code = "outputs_missing"


class OutputsNotTabularError(ModelyardError):
    """The named outputs of a job have different numbers of rows."""

    code = "outputs_not_tabular"


class DatasetError(ModelyardError):
    """A data set is missing, corrupt, or not what it claims to be."""

    code = "dataset_invalid"
