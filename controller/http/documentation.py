"""Texts of `/docs` and `/openapi.json`: summaries, and examples that can be tried unchanged.

The schemas of the answers are generated from `modelyard.schemas`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from controller.input.bodies import ARROW_FILE, ARROW_STREAM, MULTIPART, PARQUET
from modelyard.schemas import (
    DOCUMENTS,
    BatchFile,
    BatchFiles,
    DecisionList,
    Findings,
    Health,
    Job,
    JobList,
    Jobs,
    Pool,
    Problem,
    Quarantine,
    Readiness,
    RoutePlan,
    Scale,
    VersionControl,
)

INTRODUCTION = """
Serves several MLflow model versions behind one endpoint. Every version has a durable queue of its own; a
request goes to the version with the best `val_accuracy`, or to the one that it names. A job answered **202**
ends in exactly one outcome.
"""

TAGS = [
    {"name": name, "description": text}
    for name, text in {
        "jobs": "Post, read and cancel predictions",
        "batches": "Files of rows",
        "pool": "What is served, and how well",
        "operation": "Versions in and out of service",
        "health": "Probes",
        "mlflow": "The protocol of MLflow's scoring server",
        "open inference protocol": "The protocol of Triton, KServe and MLServer",
    }.items()
]
LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
REFERENCE = "#/components/schemas/{name}"


def publish_schemas(fastapi: FastAPI, show_served: Callable[[dict[str, Any]], None]) -> None:
    """Add the schemas of the answers to the OpenAPI document, in the way that FastAPI documents.

    Args:
        show_served: Adds the examples of the served versions to the paths of the document.
    """
    make = fastapi.openapi
    made = schemas()

    def openapi() -> dict[str, Any]:
        document = make()
        document.setdefault("components", {}).setdefault("schemas", {}).update(made)
        for operation in [each for path in document["paths"].values() for each in path.values()]:
            operation.setdefault("security", [])  # stated: anyone may call it
        show_served(document["paths"])
        return document

    fastapi.openapi = openapi  # type: ignore[method-assign]


def schemas() -> dict[str, Any]:
    """A JSON schema for each document and its parts, by name."""
    _, made = msgspec.json.schema_components(DOCUMENTS, ref_template=REFERENCE)
    for schema in made.values():
        for field in schema["properties"].values():
            if field.get("default", "") is None:
                del field["default"]
            if not field.pop("nullable", True):
                kinds = [each for each in field.pop("anyOf") if each != {"type": "null"}]
                field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
    return made


_SCORES = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
_RECEIPT = {
    "id": "AZqzJm0RAAEu3lQ8a1mBqk1T0mX9hQ2b.0",
    "status": "queued",
    "worker": 2,
    "model_name": "MNIST_PyTorch_Model",
    "model_version": 2,
    "val_accuracy": 0.9889,
    "policy": "highest_val_accuracy",
    "forced": False,
    "result_url": "/results/AZqzJm0RAAEu3lQ8a1mBqk1T0mX9hQ2b.0",
}
_DONE = {
    **_RECEIPT,
    "status": "succeeded",
    "worker_id": "host-4711-9f86d081",
    "batch_samples": 1,
    "inference_ms": 0.21,
    "queue_wait_ms": 2,
    "end_to_end_ms": 3,
    "predictions": [{"class": 7, "scores": _SCORES}],
}
_SAMPLES: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "items": {},
            "description": "nested lists, or a list of objects, one a row",
            "minItems": 1,
        },
        {"type": "object", "description": "a list for each column or named tensor"},
    ]
}
_FRAME = {
    "type": "object",
    "required": ["columns", "data"],
    "additionalProperties": False,
    "properties": {key: {"type": "array", "items": {}} for key in ("columns", "data", "index")},
}
_KEYS = {
    **dict.fromkeys(("data", "inputs", "instances"), _SAMPLES),
    "dataframe_split": _FRAME,
    "dataframe_records": {"type": "array", "items": {"type": "object"}, "minItems": 1},
}
BLANK_DIGIT = {"a blank digit": {"value": {"inputs": [[[[0.0] * 28] * 28]]}}}


def _json(document: type[msgspec.Struct], example: Any = None) -> dict[str, Any]:
    schema = {"schema": {"$ref": REFERENCE.format(name=document.__name__)}}
    return {"content": {"application/json": schema | ({"example": example} if example else {})}}


_PROBLEM = {"application/problem+json": {"schema": {"$ref": REFERENCE.format(name=Problem.__name__)}}}


def _problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    return {
        int(status[1:]): {"description": text, "content": _PROBLEM} for status, text in descriptions.items()
    }


# Without it or a 422, FastAPI adds its own error format, which this API never returns.
_OTHER = {"description": "Any other problem", "content": _PROBLEM}
_KEY = {"s401": "The API key is missing or invalid"}
_OPERATOR = {**_KEY, "s403": "The API key does not have the role `operate`"}


def _parameter(name: str, schema: dict[str, Any], text: str, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "schema": schema, "description": text}


_SECONDS = {"type": "number", "minimum": 0}
_NUMBER = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_VERSION = {"anyOf": [_NUMBER, {"type": "string", "pattern": r"^[\w-]+$"}]}

_TABLES = [each.decode() for each in (ARROW_STREAM, ARROW_FILE, PARQUET)]
_FORM = {
    "schema": {
        "type": "object",
        "description": "each file is an image, and each other field a parameter",
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "additionalProperties": {"type": "string"},
    }
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

PREDICT: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Post a prediction",
    "status_code": 202,
    "responses": {
        202: {"description": "Accepted: poll `result_url`", **_json(Job, _RECEIPT)},
        200: {"description": "The outcome, if it came within `wait`", **_json(Job, _DONE)},
        **_problems(
            **_KEY,
            s400="The body is not JSON",
            s404="No such worker number, model, version or endpoint",
            s409="The idempotency key was used for another request",
            s413="Too many samples or bytes",
            s415="The body's content type or encoding is not supported; `Accept-Post` or `Accept-Encoding` "
            "lists the supported ones",
            s422="The samples do not fit the model, a parameter is out of range, or several endpoints are served "
            "and the request names none",
            s429="The queue is full: the expected wait is too long for the job's deadline. Or the client "
            "exceeds its rate limit",
            s503="No worker is ready, Redis does not answer, another post with the Idempotency-Key is being "
            "accepted, or the controller is stopping. With `id` and `result_url`, the job was accepted",
        ),
    },
    "openapi_extra": {
        "parameters": [
            _parameter("worker", _NUMBER, "use this worker number"),
            _parameter("model", {"type": "string"}, "use this model"),
            _parameter("version", _VERSION, "use this version of the model: its number or an alias"),
            _parameter("endpoint", {"type": "string"}, "use the best version of this endpoint"),
            _parameter("wait", _SECONDS | {"maximum": 60}, "seconds to wait for the outcome (default 0)"),
            _parameter(
                "deadline", _SECONDS | {"maximum": 3600}, "seconds until the job expires (default 60)"
            ),
            _parameter("params", {"type": "string"}, "parameters of the model, a JSON object"),
            _parameter(
                "callback_url",
                {"type": "string", "format": "uri"},
                "deliver the job there when it has ended, as a signed webhook (https://www.standardwebhooks.com)",
            ),
            _parameter("Prefer", {"type": "string"}, "`wait=5` or `respond-async` (RFC 7240)", "header"),
            _parameter(
                "Idempotency-Key", {"type": "string"}, "a repeated post returns the first job", "header"
            ),
        ],
        "requestBody": {
            "description": "Samples as JSON: numbers, named tensors or columns, as the version's contract says; as a "
            "NumPy file or archive; as the model's own dtype, little-endian, in C order; as a MessagePack map with "
            "one key that holds such bytes or nested numbers; as CSV, Arrow IPC or Parquet; as PNG or "
            "JPEG images, where a row of the version's input is an image.",
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "oneOf": [
                            {
                                "type": "object",
                                "required": [key],
                                "additionalProperties": False,
                                "properties": {key: schema, "params": {"type": "object"}},
                            }
                            for key, schema in _KEYS.items()
                        ]
                    },
                    "examples": BLANK_DIGIT,
                },
                "application/x-npy": _BINARY,
                "application/x-npz": _BINARY,
                "application/octet-stream": _BINARY,
                "application/msgpack": _BINARY,
                "text/csv": {"schema": {"type": "string"}},
                **dict.fromkeys(_TABLES, _BINARY),
                **dict.fromkeys(("image/png", "image/jpeg"), _BINARY),
                MULTIPART.decode(): _FORM,
            },
        },
    },
}


def _without(described: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same operation without these query parameters."""
    extra = described["openapi_extra"]
    parameters = [each for each in extra["parameters"] if each["name"] not in names]
    return {**described, "openapi_extra": {**extra, "parameters": parameters}}


MODEL_PREDICT = _without({**PREDICT, "summary": "Post a prediction to a model"}, "model", "endpoint")
ENDPOINT_PREDICT = _without(
    {**PREDICT, "summary": "Post a prediction to an endpoint"}, "model", "version", "worker", "endpoint"
)
VERSION_PREDICT = _without(
    {**PREDICT, "summary": "Post a prediction to a version"}, "model", "version", "worker", "endpoint"
)
_MLFLOW_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error_code", "message", "code"],
            "properties": {name: {"type": "string"} for name in ("error_code", "message", "code")},
        }
    }
}
INVOCATIONS: dict[str, Any] = {
    "tags": ["mlflow"],
    "summary": "Predict as MLflow's scoring server does",
    "response_class": PlainTextResponse,
    "responses": {
        200: {
            "description": "The predictions; what the model answered, for a body in the unified form of chat models",
            "content": {"application/json": {"schema": {"properties": {"predictions": {}}}}},
        },
        202: {"description": "With `Prefer: respond-async`: poll `result_url`", **_json(Job, _RECEIPT)},
        415: {
            "description": "The body is neither JSON nor CSV in UTF-8, nor Parquet",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        "default": {"description": "Any other problem, as MLflow says it", "content": _MLFLOW_ERROR},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "oneOf": [
                            {
                                "type": "object",
                                "required": [key],
                                "properties": {key: {}, "params": {"type": "object"}},
                            }
                            for key in (
                                "inputs",
                                "instances",
                                "dataframe_split",
                                "dataframe_records",
                                "messages",
                            )
                        ]
                    },
                    "examples": BLANK_DIGIT,
                },
                "text/csv": {"schema": {"type": "string"}},
                PARQUET.decode(): _BINARY,
            },
        }
    },
}
PING: dict[str, Any] = {
    "tags": ["mlflow"],
    "summary": "Would it accept a prediction? As MLflow's scoring server says it",
    "response_class": PlainTextResponse,
    "responses": {
        200: {"description": "It would", "content": {"application/json": {}}},
        503: {"description": "It would not", "content": {"application/json": {}}},
    },
}
VERSION: dict[str, Any] = {
    "tags": ["mlflow"],
    "summary": "Release of this server",
    "response_class": PlainTextResponse,
    "responses": {200: {"description": "Such as 0.1.0", "content": {"application/json": {}}}},
}
_V2_ERROR = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["error"],
            "properties": {name: {"type": "string"} for name in ("error", "code")},
        }
    }
}
_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}
_V2_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": _TEXT,
        "parameters": _OBJECT,
        "data": {"type": "array", "items": {}},
    },
}
_V2_TENSORS = {"type": "array", "items": _V2_TENSOR}


def _v2(summary: str, description: str, required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {
        "tags": ["open inference protocol"],
        "summary": summary,
        "response_class": PlainTextResponse,
        "responses": {
            200: {"description": description, "content": {"application/json": {"schema": schema}}},
            "default": {"description": "Any problem, as the protocol says it", "content": _V2_ERROR},
        },
    }


_FLAG = {"type": "boolean"}
_TEXTS = {"type": "array", "items": _TEXT}
V2_SERVER = _v2(
    "Metadata of this server",
    "Name, release and extensions",
    ["name", "version", "extensions"],
    name=_TEXT,
    version=_TEXT,
    extensions=_TEXTS,
)
V2_LIVE = _v2("Is it alive?", "It is", ["live"], live=_FLAG)
V2_READY = _v2("Readiness for predictions", "Ready", ["ready"], ready=_FLAG)
V2_READY["responses"][503] = {**V2_READY["responses"][200], "description": "Not ready"}
V2_MODEL_READY = _v2("Readiness of a model", "Ready", ["name", "ready"], name=_TEXT, ready=_FLAG)
V2_MODEL_READY["responses"][503] = {**V2_MODEL_READY["responses"][200], "description": "Not ready"}
V2_MODEL = _v2(
    "Metadata of a model",
    "Versions that are served, and inputs of the one that a request goes to",
    ["name", "platform", "inputs", "outputs"],
    name=_TEXT,
    versions=_TEXTS,
    platform=_TEXT,
    inputs=_V2_TENSORS,
    outputs=_V2_TENSORS,
)
_TRITON_TENSORS = {"type": "array", "items": _OBJECT}
V2_CONFIG = _v2(
    "Configuration of a model as Triton says it",
    "Inputs, outputs and the largest number of samples in a request",
    ["name", "max_batch_size", "input", "output"],
    name=_TEXT,
    platform=_TEXT,
    backend=_TEXT,
    max_batch_size={"type": "integer"},
    input=_TRITON_TENSORS,
    output=_TRITON_TENSORS,
)
V2_INDEX = _v2("Served versions as Triton's repository index says them", "The versions", [])
V2_INDEX["responses"][200]["content"]["application/json"]["schema"] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": dict.fromkeys(("name", "version", "state", "reason"), _TEXT),
    },
}
V2_INFER = _v2(
    "Predict as the Open Inference Protocol says",
    "The outputs; as bytes after the JSON where the request asks for that",
    ["model_name", "outputs"],
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    parameters=_OBJECT,
    outputs=_V2_TENSORS,
)
V2_INFER["responses"][202] = {
    "description": "With `Prefer: respond-async`: poll `result_url`",
    **_json(Job, _RECEIPT),
}
V2_RESULT = _v2(
    "Read a job's outputs as the Open Inference Protocol says",
    "The outputs, as JSON",
    ["model_name", "outputs"],
    model_name=_TEXT,
    model_version=_TEXT,
    parameters=_OBJECT,
    outputs=_V2_TENSORS,
)
V2_RESULT["responses"][202] = {"description": "No outcome yet", **_json(Job, _RECEIPT)}
V2_INFER["openapi_extra"] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": _TEXT,
                        "parameters": _OBJECT,
                        "inputs": {**_V2_TENSORS, "minItems": 1},
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": _TEXT, "parameters": _OBJECT},
                            },
                        },
                    },
                }
            },
            "application/octet-stream": _BINARY,
        },
    }
}
RESULT: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Read a job",
    "responses": {
        200: {"description": "The job", **_json(Job, _DONE)},
        **_problems(
            **_KEY,
            s404="No job of this API key has this id",
            s410="Its outcome has expired",
            s422="`wait` is out of range",
            s503="Redis does not answer, or returned without the job, which a controller may replay",
        ),
    },
}
RESULTS: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Read many jobs",
    "responses": {
        200: {"description": "A job or a problem for each id, in the order of the ids", **_json(Jobs)},
        **_problems(
            **_KEY,
            s422="There are no ids or too many, or `wait` is out of range",
            s503="Redis does not answer",
        ),
    },
}
_EVENTS = {
    "description": "Server-sent events: `job` with the job as JSON, or `problem`, at first and at each change of its "
    "status; then `end`",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_ENDED = {"description": "All had been told (`Last-Event-ID: end`)"}
RESULT_EVENTS: dict[str, Any] = {
    **RESULT,
    "summary": "Follow a job",
    "response_class": PlainTextResponse,
    "responses": {**RESULT["responses"], 200: _EVENTS, 204: _ENDED, "default": _OTHER},
}
del RESULT_EVENTS["responses"][422]
RESULTS_EVENTS: dict[str, Any] = {
    **RESULTS,
    "summary": "Follow many jobs",
    "response_class": PlainTextResponse,
    "responses": {**RESULTS["responses"], 200: _EVENTS, 204: _ENDED},
}
CANCEL: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Cancel a job",
    "responses": {
        200: {"description": "Cancelled", **_json(Job, {**_RECEIPT, "status": "cancelled"})},
        **_problems(
            **_KEY,
            s404="No job of this API key has this id",
            s409="The job is running or has its outcome",
            s410="Its outcome has expired",
            s503="Redis does not answer, or returned without the job, which a controller may replay",
        ),
        "default": _OTHER,
    },
}
VERSION_OPENAPI: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "OpenAPI document of a version",
    "responses": {
        200: {"description": "The document", "content": {"application/json": {"schema": _OBJECT}}},
        **_problems(
            **_KEY,
            s404="No such model, version or alias",
            s422="The version is malformed",
            s503="No worker of the version is alive",
        ),
    },
}
ROUTE: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "Explain where a prediction would go",
    "responses": {
        200: {"description": "The possible routes", **_json(RoutePlan)},
        **_problems(
            **_KEY,
            s404="No such worker number, model, version or endpoint",
            s422="A parameter is out of range, or several endpoints are served and the query names none",
            s503="No worker is ready",
        ),
    },
    "openapi_extra": {
        "parameters": [
            each
            for each in PREDICT["openapi_extra"]["parameters"]
            if each["in"] == "query" and each["name"] not in ("wait", "callback_url")
        ]
    },
}
WORKERS: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "List the workers",
    "responses": {
        200: {"description": "The pool", **_json(Pool)},
        **_problems(**_OPERATOR, s503="Redis does not answer"),
    },
}
_LISTED = {
    **{name: _DONE[name] for name in ("id", "status", "worker", "model_name", "model_version", "policy")},
    **{name: _DONE[name] for name in ("forced", "worker_id", "batch_samples", "inference_ms")},
    "caller": "",
    "n_samples": 1,
    "received_at_ms": 1767225600000,
    "deadline_ms": 1767225660000,
    "attempts": 1,
    "end_to_end_ms": 3,
    "finished_at_ms": 1767225600003,
    "queue_wait_ms": 2,
    "error_code": "",
}
_QUARANTINED = {
    "job_id": _RECEIPT["id"],
    "quarantined_at_ms": 1767225600000,
    "worker": 2,
    "model_name": "MNIST_PyTorch_Model",
    "model_version": 2,
    "n_samples": 1,
    "resent_as": "AZqzRSIzAAHiXk3e0sB7c2pV1nW8kL4d.0",
}


def _control(summary: str, **problems: str) -> dict[str, Any]:
    done = {
        "model_name": "MNIST_PyTorch_Model",
        "model_version": 2,
        "by": "ann",
        "reason": "",
        "open_jobs": 0,
    }
    return {
        "tags": ["operation"],
        "summary": summary,
        "responses": {
            200: {"description": "What was done", **_json(VersionControl, {**done, "state": "retired"})},
            **_problems(
                **_OPERATOR,
                s404="The pool has never served this model or version",
                **problems,
                s422="A parameter is malformed",
                s503="Redis does not answer",
            ),
        },
    }


DISABLE = _control("Take a version out of the routing")
ENABLE = _control("Put a version back into service")
RETIRE = _control("Accept no more jobs for a version")
PIN = _control("Route to one version of a model alone")
UNPIN = _control("Let all versions of a model compete")
FORGET = _control("Remove a version that nobody serves", s409="The version has workers or jobs")
SCALE_TO = _control(
    "Set the number of a version's workers", s409="No worker of the version runs under `modelyard up`"
)
_DECISION = {
    "at_ms": 1767225600000,
    "kind": "retired",
    "model_name": "MNIST_PyTorch_Model",
    "model_version": 1,
    "by": "ann",
    "reason": "replaced by version 2",
}
DECISIONS: dict[str, Any] = {
    "tags": ["operation"],
    "summary": "List decisions about versions",
    "responses": {
        200: {"description": "The decisions", **_json(DecisionList, {"decisions": [_DECISION]})},
        **_problems(**_OPERATOR, s422="`limit` is out of range", s503="Redis does not answer"),
    },
}
_SCALE = {"jobs": 1200, "running": 1, "live_replicas": 1, "expected_wait_s": 2.4, "wanted_replicas": 3}
SCALE: dict[str, Any] = {
    "tags": ["operation"],
    "summary": "Tell how many workers a version needs",
    "responses": {
        200: {"description": "Load of the version's queue", **_json(Scale, _SCALE)},
        **_problems(
            **_OPERATOR,
            s404="The pool has never served this version, and `modelyard.toml` does not list it",
            s422="The version is not a number",
            s503="Redis does not answer",
        ),
    },
}
JOBS: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "List jobs",
    "responses": {
        200: {"description": "One page of jobs", **_json(JobList, {"jobs": [_LISTED]})},
        **_problems(**_OPERATOR, s422="A parameter is out of range", s503="Redis does not answer"),
    },
}
FINDINGS: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "List what needs attention",
    "responses": {
        200: {
            "description": "The findings",
            **_json(
                Findings,
                {
                    "findings": [
                        {
                            "kind": "quarantined",
                            "subject": "jobs",
                            "detail": "2 jobs have crashed their workers",
                        }
                    ]
                },
            ),
        },
        **_problems(**_OPERATOR, s503="Redis does not answer"),
    },
}
QUARANTINE: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "List quarantined jobs",
    "responses": {
        200: {"description": "The jobs", **_json(Quarantine, {"jobs": [_QUARANTINED]})},
        **_problems(**_OPERATOR, s422="`limit` is out of range", s503="Redis does not answer"),
    },
}
RESEND: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "Send a quarantined job again",
    "status_code": 202,
    "responses": {
        202: {
            "description": "The new job, or the one of an earlier resend",
            **_json(Job, {**_RECEIPT, "resent_from": "AZqzJm0RAAEu3lQ8a1mBqk1T0mX9hQ2b.0"}),
        },
        **_problems(
            **_OPERATOR,
            s404="No job has this id",
            s409="The job is not in quarantine",
            s410="Its record has expired, and its samples with it",
            s422="`deadline` is out of range",
            s503="Redis does not answer",
        ),
    },
}
_BATCH = {
    "id": "0c8a6f0e6f0b4a0d9d7c1d5f3b1e2a4c",
    "status": "running",
    "batch_url": "/batches/0c8a6f0e6f0b4a0d9d7c1d5f3b1e2a4c",
    "created_at_ms": 1767225600000,
    "rows": 1000000,
    "rows_done": 250000,
    "rows_failed": 1,
    "rows_per_s": 12500.0,
    "progress": 0.25,
}
_NO_BATCH = {**_KEY, "s404": "No batch of this API key has this id, or the controller takes no files"}
_NO_OUTPUT = {**_NO_BATCH, "s409": "The batch has not ended, failed or was cancelled"}
_ROWS = {"schema": {"type": "string"}}
BATCH: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "Post a file",
    "status_code": 202,
    "responses": {
        202: {
            "description": "Accepted: poll `batch_url`",
            **_json(BatchFile, {**_BATCH, "status": "waiting"}),
        },
        **_problems(
            **_KEY,
            s404="No such worker number, model, version or endpoint; or the controller takes no files",
            s409="The idempotency key was used for another kind of request",
            s413="The file is too large",
            s415="The content type is none of a file of rows",
            s422="The file is empty, or a parameter is malformed",
            s429="Too many files arrive, or too many batches wait",
            s503="No worker is ready, the controller is stopping, or it cannot store the file",
        ),
    },
    "openapi_extra": {
        "parameters": [
            _parameter(
                "Idempotency-Key", {"type": "string"}, "a repeated post returns the first batch", "header"
            )
        ],
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys(("text/csv", "application/x-ndjson"), _ROWS),
                **dict.fromkeys(
                    (PARQUET.decode(), "application/x-npy", "application/x-npz", "application/zip"), _BINARY
                ),
            },
        },
    },
}
BATCHES: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "List batches",
    "responses": {
        200: {"description": "The batches, newest first", **_json(BatchFiles, {"batches": [_BATCH]})},
        **_problems(**_KEY, s404="The controller takes no files", s422="`limit` is out of range"),
    },
}
BATCH_STATE: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "Read a batch",
    "responses": {
        200: {"description": "How far it has come", **_json(BatchFile, _BATCH)},
        **_problems(**_NO_BATCH, s422="`wait` is out of range"),
    },
}
BATCH_CANCEL: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "Cancel a batch",
    "responses": {
        200: {"description": "Cancelled", **_json(BatchFile, {**_BATCH, "status": "cancelled"})},
        **_problems(**_NO_BATCH, s409="The batch has ended"),
        "default": _OTHER,
    },
}
BATCH_OUTPUT: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "Read the output of a batch",
    "response_class": PlainTextResponse,
    "responses": {
        200: {
            "description": "The file",
            "content": {
                **dict.fromkeys(("text/csv", "application/x-ndjson"), _ROWS),
                PARQUET.decode(): _BINARY,
            },
        },
        **_problems(**_NO_OUTPUT),
        "default": _OTHER,
    },
}
BATCH_ERRORS: dict[str, Any] = {
    "tags": ["batches"],
    "summary": "Read the rows of a batch without a prediction",
    "response_class": PlainTextResponse,
    "responses": {
        200: {"description": "One JSON object a line", "content": {"application/x-ndjson": _ROWS}},
        **_problems(**_NO_OUTPUT),
        "default": _OTHER,
    },
}
REGISTRY_WEBHOOK: dict[str, Any] = {
    "tags": ["operation"],
    "summary": "Take a webhook of MLflow",
    "status_code": 204,
    "responses": {
        204: {"description": "The pool's processes read the registry now"},
        **_problems(
            s403="The event is not signed by the secret, is not an event, or is too old",
            s404="The controller has no secret to check the event",
            s413="The event is too large",
            s503="Redis does not answer",
        ),
    },
}
METRICS: dict[str, Any] = {
    "tags": ["pool"],
    "summary": "Prometheus metrics",
    "response_class": PlainTextResponse,
    "responses": {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "All series"},
        **_problems(**_OPERATOR),
    },
}
HEALTH: dict[str, Any] = {
    "tags": ["health"],
    "summary": "Is it alive?",
    "responses": {200: {"description": "It is", **_json(Health)}},
}
READY: dict[str, Any] = {
    "tags": ["health"],
    "summary": "Readiness for predictions",
    "responses": {
        200: {"description": "Ready", **_json(Readiness)},
        503: {"description": "Not ready; `reasons` lists the causes", **_json(Readiness)},
    },
}
READY_TO_READ: dict[str, Any] = {**READY, "summary": "Readiness for load balancers"}
