"""The routes of batches of files."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from app.server_errors import BatchesOffError, DrainingError, ParameterError, UnsupportedError
from controller.admission.authentication import Caller, require
from controller.batch_files.batch_files import BatchStore, readable, too_large
from controller.batch_files.batch_folder import BatchFolder, BatchRequest
from controller.http import documentation as docs
from controller.http.caller_presence import while_present
from controller.http.prediction_request import in_range, version_of
from controller.http.responses import json_response
from controller.routing import routes
from controller.selector import Selector
from controller.services import Services
from modelyard.batch.batch_run import DEADLINE_S
from modelyard.schemas import BatchFiles

router = APIRouter()
NDJSON = "application/x-ndjson"
MAX_KEY_CHARACTERS = 255
INPUTS = {
    "text/csv": ".csv",
    NDJSON: ".ndjson",
    "application/jsonl": ".ndjson",
    "application/vnd.apache.parquet": ".parquet",
    "application/x-parquet": ".parquet",
    "application/x-npy": ".npy",
    "application/x-npz": ".npz",
    "application/zip": ".zip",
}
OUTPUTS = {".csv": "text/csv", ".ndjson": NDJSON, ".parquet": "application/vnd.apache.parquet"}
Output = Annotated[
    Literal["csv", "ndjson", "parquet"] | None,
    Query(description="format of the output; default: that of the input, or `ndjson` for arrays"),
]


@router.post("/batches", dependencies=[require("predict")], **docs.BATCH)
async def create_batch(
    request: Request,
    worker: Annotated[int | None, Query(ge=1, description="use this worker number")] = None,
    model: Annotated[str | None, Query(description="use this model")] = None,
    version: Annotated[
        str | None, Query(description="use this version of the model: its number or an alias")
    ] = None,
    endpoint: Annotated[str | None, Query(description="use the best version of this endpoint")] = None,
    params: Annotated[str, Query(description="parameters of the model, a JSON object")] = "",
    output: Output = None,
    rows: Annotated[int, Query(ge=1, le=65535, description="rows in one request, at most")] = 8000,
) -> Response:
    """Predict the rows of a file into another file. All rows go to the version that the first ones are routed to."""
    services: Services = request.state.services
    batches, caller = _batches(services), _caller(request)
    kind = INPUTS.get(request.headers.get("content-type", "").partition(";")[0].strip().lower())
    if kind is None or request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedError(
            f"expected a file of one of the types {', '.join(INPUTS)}, without a content coding"
        )
    if services.drain.is_announced:
        raise DrainingError(
            "this controller is stopping; use another one, or try again shortly", retry_after_s=1
        )
    options = {
        "worker": worker,
        "model": model,
        "version": version and version_of(version),
        "endpoint": endpoint,
    }
    selector = Selector(worker, model, options["version"], endpoint)
    routes(services.watcher.view.snapshot, selector, DEADLINE_S)
    if int(request.headers.get("content-length", "0")) > services.settings.batch_max_bytes:
        raise too_large(services.settings.batch_max_bytes)
    asked = BatchRequest(
        owner=caller.name,
        input=kind,
        output=f".{output}" if output else kind if kind in OUTPUTS else ".ndjson",
        options=options,
        params=_params(params),
        rows=min(rows, services.settings.max_samples),
    )
    connection = getattr(request.state, "connection", None)
    on_part = connection.extend_time if connection else bool
    accepted = await batches.receive(asked, request.stream(), _key(request), on_part)
    return _document(
        services, accepted, 202, {"location": f"{services.settings.prefix}/batches/{accepted.id}"}
    )


@router.get("/batches", dependencies=[require("predict")], **docs.BATCHES)
async def list_batches(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="number of batches, newest first")] = 100,
) -> Response:
    """List the batches of the caller, or of all callers for an operator."""
    services: Services = request.state.services
    found = await asyncio.to_thread(_batches(services).of_caller, _caller(request), limit)
    listed = BatchFiles(tuple(each.document(services.settings.prefix) for each in found))
    return json_response(listed)


@router.get("/batches/{batch_id}", dependencies=[require("predict")], **docs.BATCH_STATE)
async def batch_state(
    request: Request,
    batch_id: str,
    wait: Annotated[float, Query(description="seconds to wait for the end, 0 to 60")] = 0.0,
) -> Response:
    """Read the progress of a batch."""
    services: Services = request.state.services
    batches, wait_s = _batches(services), in_range("wait", wait, 0, services.settings.max_wait_s)
    folder = batches.find(batch_id, _caller(request))
    if wait_s:
        await while_present(request, batches.wait(folder, wait_s))
    return _document(services, folder)


@router.get("/batches/{batch_id}/output", dependencies=[require("predict")], **docs.BATCH_OUTPUT)
async def batch_output(request: Request, batch_id: str) -> Response:
    """Read the predictions: a row for each row of the input, in order."""
    folder = _batches(request.state.services).find(batch_id, _caller(request))
    path = readable(folder, folder.output)
    return FileResponse(path, media_type=OUTPUTS[path.suffix], filename=f"{batch_id}{path.suffix}")


@router.get("/batches/{batch_id}/errors", dependencies=[require("predict")], **docs.BATCH_ERRORS)
async def batch_errors(request: Request, batch_id: str) -> Response:
    """Read which rows have no prediction, and why: one JSON object a line."""
    folder = _batches(request.state.services).find(batch_id, _caller(request))
    path = readable(folder, folder.bad)
    if not path.exists():
        return Response(b"", media_type=NDJSON)
    return FileResponse(path, media_type=NDJSON, filename=f"{batch_id}.bad.ndjson")


@router.delete("/batches/{batch_id}", dependencies=[require("predict")], **docs.BATCH_CANCEL)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Cancel a batch that has not ended. Rows that were sent before are still predicted, without an output."""
    services: Services = request.state.services
    batches, caller = _batches(services), _caller(request)
    with services.audit.act("cancel_batch", "cancelled", caller.name, request.client, batch_id):
        folder = batches.find(batch_id, caller)
        batches.cancel(folder)
    return _document(services, folder)


def _batches(services: Services) -> BatchStore:
    if services.batch_files is None:
        raise BatchesOffError(
            "this controller takes no batch files; set MODELYARD_BATCH_FOLDER to a folder for them"
        )
    return services.batch_files


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _params(text: str) -> dict[str, object] | None:
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise ParameterError('params must be a JSON object, such as {"temperature":0.5}') from None


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > MAX_KEY_CHARACTERS:
        raise ParameterError(f"the Idempotency-Key is longer than {MAX_KEY_CHARACTERS} characters")
    return key


def _document(
    services: Services, folder: BatchFolder, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return json_response(folder.document(services.settings.prefix), status, headers)
