"""The OpenAPI document of one model version, and the examples of all of them for `/docs`.

It is the part of this server's document that a caller of the version needs, with the schemas of its contract.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from app.contract import ColumnsContract, Contract, TensorContract, TensorsContract
from app.contract.documents import PARAMS
from app.contract.tables import SPELLED
from app.redis import keys
from app.server_errors import NoCandidateError
from app.worker_record import WorkerRecord, by_queue
from controller.http.contract_schemas import body_schema, outputs_schema
from controller.http.documentation import BLANK_DIGIT
from controller.http.prediction_request import ENDS
from controller.input.bodies import IMAGES
from controller.input.image_layout import takes_images
from controller.pool_watcher import PoolView
from controller.selector import Selector, named_version
from modelyard.schemas import Job

JSON = "application/json"
PREDICT_PATH = "/models/{name}/versions/{version}/predict"
RESULT_PATH = "/results/{job_id}"
PATH_PARAMETERS = frozenset({"name", "version"})
COMPONENT = re.compile(r"#/components/(\w+)/(.+)")


def record_of(view: PoolView, name: str, version: int | str) -> WorkerRecord:
    """The newest record of a version's workers.

    Args:
        version: Number or alias.

    Raises:
        UnknownModelError: No queue serves the model or version, or the model has no such alias.
        NoCandidateError: No worker of the version is alive.
    """
    model, number = named_version(view.snapshot, Selector(model=name, version=version))
    assert number is not None
    queue = keys.queue_name(model, number)
    records = by_queue(view.records).get(queue)
    if records is None:
        raise NoCandidateError(
            f"no worker of {model} version {number} is alive to tell its contract; try again shortly",
            retry_after_s=2,
        )
    return records[0]


def version_document(whole: Mapping[str, Any], record: WorkerRecord, prefix: str) -> dict[str, Any]:
    """The OpenAPI document of the version that a record describes.

    Args:
        whole: The document of this server.
        prefix: Where a proxy publishes this server.
    """
    name, number = record.model_name, record.model_version
    predict = copy.deepcopy(whole["paths"][PREDICT_PATH]["post"])
    predict["operationId"] = "predict"
    predict["summary"] = f"Predict with {name} version {number}"
    without = PATH_PARAMETERS if record.input.params else {*PATH_PARAMETERS, PARAMS}
    predict["parameters"] = [each for each in predict["parameters"] if each["name"] not in without]
    predict["requestBody"] = {
        "description": f"Expects {record.input.describe()}",
        "required": True,
        "content": _content(record, predict["requestBody"]["content"]),
    }
    result = copy.deepcopy(whole["paths"][RESULT_PATH])
    for answer in (*_successes(predict), *_successes(result["get"]), *_successes(result["delete"])):
        answer["content"][JSON].pop("example", None)  # of another version
    paths = {
        f"/models/{quote(name, safe='')}/versions/{number}/predict": {"post": predict},
        RESULT_PATH: result,
    }
    described = f"without a {record.metric}" if record.figure is None else f"{record.metric} {record.figure}"
    return {
        "openapi": whole["openapi"],
        "info": {
            "title": f"{name} version {number}",
            "version": str(number),
            "description": f"The MLflow model version `models:/{name}/{number}`, {described}, served by Modelyard "
            f"{whole['info']['version']}. `GET {prefix}/docs` shows the whole API.",
        },
        "servers": [{"url": prefix or "/"}],
        "tags": [each for each in whole["tags"] if each["name"] in predict["tags"]],
        "paths": paths,
        "components": _used(_with_outputs(whole["components"], record), paths),
    }


def show_examples(paths: Mapping[str, Any], records: Iterable[WorkerRecord], prefix: str) -> None:
    """Fill in the operations that predict, so that each can be tried as it stands.

    They get the example of each version that publishes one, or else a blank digit, and their paths name the first of
    these versions.

    Args:
        paths: Those of the document of this server.
    """
    newest = [group[0] for group in by_queue(records).values()]
    ordered = sorted(newest, key=lambda each: (not each.example, each.model_name, -each.model_version))
    examples = {
        f"{each.model_name} version {each.model_version}": _example(each, prefix)
        for each in ordered
        if each.example
    }
    named = {"name": ordered[0].model_name, "version": str(ordered[0].model_version)} if ordered else {}
    for path, operations in paths.items():
        if not path.endswith(ENDS):
            continue
        operation = operations["post"]
        if named and not path.startswith("/endpoints/"):
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["example"] = named[parameter["name"]]
        content = operation["requestBody"]["content"][JSON]
        if "examples" in content:
            content["examples"] = examples or BLANK_DIGIT


def _example(record: WorkerRecord, prefix: str) -> dict[str, Any]:
    name, number = record.model_name, record.model_version
    document = f"{prefix}/models/{quote(name, safe='')}/versions/{number}/openapi.json"
    return {
        "summary": f"{name} version {number}",
        "description": f"Expects {record.input.describe()}. [Its own OpenAPI document]({document})",
        "value": msgspec.json.decode(record.example),
    }


def _content(record: WorkerRecord, known: Mapping[str, Any]) -> dict[str, Any]:
    """The content types that the version takes, of those that this server reads."""
    contract = record.input
    example = {"example": msgspec.json.decode(record.example)} if record.example else {}
    taken = {JSON: {"schema": body_schema(contract), **example}}
    for kind, content in known.items():
        if kind not in taken and _takes(contract, kind):
            taken[kind] = content
    return taken


def _takes(contract: Contract, kind: str) -> bool:
    if kind == "text/csv":
        return isinstance(contract, ColumnsContract) and all(
            each.type.kind in SPELLED["strict"] for each in contract.columns
        )
    if kind == "application/octet-stream":
        return isinstance(contract, TensorContract)
    if kind == "application/x-npz":
        return not isinstance(contract, ColumnsContract) or contract.has_names
    if kind.encode() in IMAGES:
        return takes_images(contract)
    if kind == "application/x-npy":
        return isinstance(contract, TensorContract) or (
            isinstance(contract, TensorsContract) and len(contract.tensors) == 1
        )
    return True


def _successes(operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for status, each in operation["responses"].items() if status.startswith("2")]


def _with_outputs(components: Mapping[str, Any], record: WorkerRecord) -> dict[str, Any]:
    """The components, with the version's outputs in a job."""
    schemas, name = components["schemas"], Job.__name__
    outputs = {**schemas[name]["properties"]["outputs"], **outputs_schema(record.outputs)}
    job = {**schemas[name], "properties": {**schemas[name]["properties"], "outputs": outputs}}
    return {**components, "schemas": {**schemas, name: job}}


def _used(components: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """The components that the paths refer to, directly or through others, and all security schemes."""
    used: dict[str, Any] = {"securitySchemes": components.get("securitySchemes", {})}
    waiting = list(_references(paths))
    while waiting:
        section, name = waiting.pop()
        group = used.setdefault(section, {})
        if name not in group:
            group[name] = components[section][name]
            waiting += _references(group[name])
    return used


def _references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        found = COMPONENT.fullmatch(value["$ref"]) if isinstance(value.get("$ref"), str) else None
        if found:
            yield found[1], found[2]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)
