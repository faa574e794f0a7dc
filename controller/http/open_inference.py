"""The Open Inference Protocol (v2) over REST: clients of Triton, KServe and MLServer change the address.

Where a path names no version, the request is routed among the model's versions.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import orjson
from fastapi import APIRouter, Query, Request, Response
from starlette.types import Message, Receive, Scope, Send

from app.contract import FREE, Contract
from app.ledger import ids
from app.ledger.wire import CANCELLED, EXPIRED, BatchHead, JobOutcome
from app.server_errors import INPUT_CODES, NoCandidateError
from controller.admission.authentication import require
from controller.http import documentation as docs
from controller.http import readiness
from controller.http.caller_presence import while_present
from controller.http.inference_response import encode_response, output_tensors
from controller.http.job_json import job_json, result_url
from controller.http.prediction_request import Address, in_range, version_of
from controller.http.problems import PROBLEM_JSON
from controller.http.replies import gets_job, later, no_outcome
from controller.http.request_body import read_body
from controller.http.responses import JSON, json_response, only_documented, response_of
from controller.input.inference_request import (
    RequestHead,
    TensorMetadata,
    inputs_of,
    outputs_of,
    read_request_head,
)
from controller.jobs import Job
from controller.routing import routes
from controller.selector import Selector
from controller.services import Services

router = APIRouter(prefix="/v2")
JSON_LENGTH = b"inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "model_configuration")
PLATFORM = "mlflow"
MAX_ID = 255  # characters of an id in a URL
UNRUN = {"expired": EXPIRED, "cancelled": CANCELLED}  # jobs without an outcome of a worker
# Statuses of jobs that failed, by the code of their error; any other is the model's own failure.
FAILED_STATUS = {"timed_out": 504, "job_expired": 504, "job_cancelled": 409}
BAD_REQUEST = 400
PACK: dict[bytes, Callable[..., bytes]] = {b"gzip": gzip.compress, b"deflate": zlib.compress}
PACK_LEVEL = 1
PACK_FROM_BYTES = 1024
PROBLEM_MEMBERS = ("type", "title", "status", "code", "detail")


@router.get("", **docs.V2_SERVER)
async def server_metadata() -> Response:
    """Name and release of this server."""
    return json_response(
        {"name": "modelyard", "version": metadata.version("modelyard"), "extensions": EXTENSIONS}
    )


@router.get("/health/live", **docs.V2_LIVE)
async def live() -> Response:
    """Whether the process is alive."""
    return json_response({"live": True})


@router.get("/health/ready", **docs.V2_READY)
async def ready(request: Request) -> Response:
    """Whether a prediction would be accepted now."""
    services = _services(request)
    reasons = [*readiness.against_serving(services), *readiness.against_accepting(services)]
    return json_response({"ready": not reasons}, 503 if reasons else 200)


@router.get("/models/{name}", dependencies=[require("predict")], **docs.V2_MODEL)
async def model_metadata(request: Request, name: str) -> Response:
    """Inputs of the model's version that a request would be routed to now."""
    return _metadata(request, Selector(model=name))


@router.get("/models/{name}/versions/{version}", dependencies=[require("predict")], **docs.V2_MODEL)
async def version_metadata(request: Request, name: str, version: str) -> Response:
    """Inputs of a version."""
    return _metadata(request, Selector(model=name, version=version_of(version)))


@router.get("/models/{name}/ready", dependencies=[require("predict")], **docs.V2_MODEL_READY)
async def model_ready(request: Request, name: str) -> Response:
    """Whether a version of the model has a worker that is ready."""
    return _ready(request, Selector(model=name))


@router.get(
    "/models/{name}/versions/{version}/ready", dependencies=[require("predict")], **docs.V2_MODEL_READY
)
async def version_ready(request: Request, name: str, version: str) -> Response:
    """Whether the version has a worker that is ready."""
    return _ready(request, Selector(model=name, version=version_of(version)))


@router.get("/models/{name}/config", dependencies=[require("predict")], **docs.V2_CONFIG)
async def model_config(request: Request, name: str) -> Response:
    """Triton's configuration of the version that a request would be routed to now."""
    return _config(request, Selector(model=name))


@router.get("/models/{name}/versions/{version}/config", dependencies=[require("predict")], **docs.V2_CONFIG)
async def version_config(request: Request, name: str, version: str) -> Response:
    """Triton's configuration of a version."""
    return _config(request, Selector(model=name, version=version_of(version)))


@router.post("/repository/index", dependencies=[require("predict")], **docs.V2_INDEX)
async def repository_index(request: Request) -> Response:
    """Every version that is served, in the form of Triton's index of its model repository."""
    served = sorted(_services(request).watcher.view.snapshot.by_version)
    return json_response(
        [{"name": name, "version": str(number), "state": "READY", "reason": ""} for name, number in served]
    )


@router.post("/models/{name}/infer", dependencies=[require("predict")], **docs.V2_INFER)
async def model_infer(name: str) -> Response:
    """Predict with the version of the model that the request is routed to."""
    return only_documented()


@router.post("/models/{name}/versions/{version}/infer", dependencies=[require("predict")], **docs.V2_INFER)
async def version_infer(name: str, version: str) -> Response:
    """Predict with one version."""
    return only_documented()


@router.get("/results/{job_id}", dependencies=[require("predict")], **docs.V2_RESULT)
async def result(
    request: Request,
    job_id: str,
    wait: Annotated[float, Query(description="seconds to wait for the outcome, 0 to 60")] = 0.0,
    id: Annotated[str | None, Query(description="the request's id, repeated in the outputs")] = None,
) -> Response:
    """Read the outputs of a job: of `infer` with `Prefer: respond-async`, or of any other request."""
    services = _services(request)
    wait_s = in_range("wait", wait, 0, services.settings.max_wait_s)
    found = services.results.job(job_id, request.state.caller, wait_s)
    view = await (while_present(request, found) if wait_s else found)
    head = view.head
    own = view.outcome.jobs[view.ref.index] if view.outcome else UNRUN.get(view.status)
    if own is None:
        prefix = _prefix(services)
        body = job_json(view.ref, head, view.status, None, prefix)
        location = {"location": result_url(job_id, prefix)}
        return _with_id(Response(body, 202, location, media_type=JSON), id)
    served = services.watcher.view.snapshot.by_version.get((head.model_name, head.model_version))
    return _outputs(services, job_id, head, own, served.outputs if served else None, RequestHead(id))


async def infer(services: Services, scope: Scope, receive: Receive, address: Address) -> Response:
    """Predict.

    Raises:
        ModelyardError: The request is refused.
    """
    predict, headers = services.predict, dict(scope["headers"])
    entered = predict.enter(scope["headers"], scope["query_string"], scope.get("client"), address)
    parts = await read_body(receive, headers, predict.check_size, services.settings.max_body_bytes)
    length = headers.get(JSON_LENGTH, b"")
    body = b"".join(parts)
    wanted = read_request_head(length, body)
    # The protocol has one kind of content; the header gives the length of its JSON part.
    asked = replace(entered.asked, content_type=length)
    job = await predict.submit_and_wait(msgspec.structs.replace(entered, asked=asked), [body])
    if job.error:
        raise job.error
    if asked.is_async and gets_job(job, asked.wait_s):
        return _with_id(response_of(later(job, _prefix(services))), wanted.id)
    return await _packed(_answer(services, job, wanted), headers.get(b"accept-encoding", b""))


def on_errors(send: Send) -> Send:
    """A `send` that turns a problem document into the protocol's error: clients read `error` of plain JSON alone.

    Inputs that do not fit have status 400, the only one that the protocol's own description gives them.
    """
    start: Message = {}

    async def send_error(message: Message) -> None:
        if message["type"] == "http.response.start" and (b"content-type", PROBLEM_JSON) in message["headers"]:
            start.update(message)  # held back: its headers depend on the body
            return
        if start:
            body = _error_body(orjson.loads(message["body"]))
            changed = {b"content-type": JSON.encode(), b"content-length": b"%d" % len(body)}
            headers = [(name, changed.get(name, value)) for name, value in start["headers"]]
            status = BAD_REQUEST if start["status"] == 422 else start["status"]
            await send({**start, "status": status, "headers": headers})
            start.clear()
            message = {**message, "body": body}
        await send(message)

    return send_error


def _error_body(problem: dict[str, Any]) -> bytes:
    others = {name: each for name, each in problem.items() if name not in PROBLEM_MEMBERS}
    return orjson.dumps({"error": problem["detail"], "code": problem["code"], **others})


def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


def _metadata(request: Request, selector: Selector) -> Response:
    snapshot = _services(request).watcher.view.snapshot
    candidate = routes(snapshot, selector)[0].candidate
    name = candidate.model_name  # the path may name an alias as well
    served = [number for model, number in snapshot.by_version if model == name]
    return json_response(
        {
            "name": name,
            "versions": [str(number) for number in sorted(served)],
            "platform": PLATFORM,
            "inputs": inputs_of(candidate.contract),
            "outputs": outputs_of(candidate.outputs),
        }
    )


def _config(request: Request, selector: Selector) -> Response:
    """The parts of Triton's model configuration that its clients read; dims are those of one sample."""
    services = _services(request)
    candidate = routes(services.watcher.view.snapshot, selector)[0].candidate
    inputs, outputs = inputs_of(candidate.contract), outputs_of(candidate.outputs)
    is_batched = bool(inputs) and all(each.shape[:1] == (FREE,) for each in [*inputs, *outputs])

    def tensors(found: list[TensorMetadata]) -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "data_type": f"TYPE_{'STRING' if each.datatype == 'BYTES' else each.datatype}",
                "dims": each.shape[is_batched:],
            }
            for each in found
        ]

    return json_response(
        {
            "name": candidate.model_name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": services.settings.max_samples if is_batched else 0,
            "input": tensors(inputs),
            "output": tensors(outputs),
        }
    )


def _ready(request: Request, selector: Selector) -> Response:
    services = _services(request)
    try:
        routes(services.watcher.view.snapshot, selector)
        reasons = readiness.against_serving(services)
    except NoCandidateError as error:
        reasons = [error.detail]
    return json_response({"name": selector.model, "ready": not reasons}, 503 if reasons else 200)


def _with_id(receipt: Response, request_id: str | None) -> Response:
    """A receipt whose location names the request's id: the ledger does not keep it, and the outputs repeat it.

    The receipt's `result_url` stays plain, because callers append parameters to it.
    """
    if request_id is not None and len(request_id) <= MAX_ID:
        receipt.headers["location"] += f"?{urlencode({'id': request_id})}"
    return receipt


def _answer(services: Services, job: Job, asked: RequestHead) -> Response:
    batch = job.batch
    assert batch
    job_id = ids.job_id(batch.batch_id, job.index)
    if batch.outcome is None:
        status, code, text = no_outcome(job, services.drain)
        url = result_url(job_id, _prefix(services))
        headers = {"location": url, **({"retry-after": "1"} if status == 503 else {})}
        return json_response({"error": text, "code": code, "result_url": url}, status, headers)
    own = batch.outcome.jobs[job.index]
    return _outputs(services, job_id, batch.head, own, job.route.candidate.outputs, asked)


def _outputs(
    services: Services,
    job_id: str,
    head: BatchHead,
    own: JobOutcome,
    declared: Contract | None,
    asked: RequestHead,
) -> Response:
    """The answer to a job that has an outcome; `declared` are the outputs that its version's signature states."""
    if own.status != "succeeded":
        document = {"error": own.error_detail, "code": own.error_code}
        location = {"location": result_url(job_id, _prefix(services))}
        status = BAD_REQUEST if own.error_code in INPUT_CODES else FAILED_STATUS.get(own.error_code, 500)
        return json_response(document, status, location)
    members: dict[str, Any] = {
        "model_name": head.model_name,
        "model_version": str(head.model_version),
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {"job_id": job_id},
    }
    body, json_length = encode_response(members, output_tensors(own, outputs_of(declared)), asked)
    if json_length is None:
        return Response(body, media_type=JSON)
    return Response(
        body, headers={JSON_LENGTH.decode(): str(json_length)}, media_type="application/octet-stream"
    )


async def _packed(answer: Response, coding: bytes) -> Response:
    """The answer in the coding that the caller names, as Triton's clients do.

    Libraries that list all the codings that they know have not asked for any: packing takes longer than it saves on
    most networks.
    """
    if coding not in PACK or len(answer.body) < PACK_FROM_BYTES:
        return answer
    answer.body = await asyncio.to_thread(PACK[coding], answer.body, PACK_LEVEL)
    answer.headers["content-encoding"] = coding.decode()
    answer.headers["content-length"] = str(len(answer.body))
    return answer


def _prefix(services: Services) -> str:
    """Prefix of the URLs of results in this protocol."""
    return services.settings.prefix + router.prefix
