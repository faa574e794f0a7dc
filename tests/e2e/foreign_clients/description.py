"""Prints an OpenAPI description of the protocol, with the schemas of `open-inference-openapi`.

That package is generated from the protocol's own description, which is not published as a package.
"""

from __future__ import annotations

import json
from typing import Any

from open_inference.openapi import types
from pydantic.v1.schema import schema

REFERENCE = "#/components/schemas/"
MODEL = "/v2/models/{model_name}"
VERSION = f"{MODEL}/versions/{{model_version}}"


def of_schema(name: str) -> dict[str, Any]:
    """JSON of one of the package's types."""
    return {"content": {"application/json": {"schema": {"$ref": REFERENCE + name}}}}


def operation(path: str, answer: str = "", error: str = "", request: str = "") -> dict[str, Any]:
    """An operation with the answers that the protocol gives it; health probes have no body."""
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in names
    ]
    responses = {"200": {"description": "OK", **(of_schema(answer) if answer else {})}}
    if error:
        responses["400"] = {"description": "Bad Request", **of_schema(error)}
    body = {"requestBody": {"required": True, **of_schema(request)}} if request else {}
    return {"post" if request else "get": {"parameters": parameters, "responses": responses, **body}}


paths = {
    path: operation(path)
    for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{VERSION}/ready")
}
paths["/v2"] = operation("/v2", "MetadataServerResponse", "MetadataServerErrorResponse")
for path in (MODEL, VERSION):
    paths[path] = operation(path, "MetadataModelResponse", "MetadataModelErrorResponse")
    infer = f"{path}/infer"
    paths[infer] = operation(infer, "InferenceResponse", "InferenceErrorResponse", "InferenceRequest")
kinds = [getattr(types, name) for name in types.__all__ if name.startswith(("Inference", "Metadata"))]
definitions = schema(kinds, ref_prefix=REFERENCE)["definitions"]
document = {
    "openapi": "3.0.0",
    "info": {"title": "Open Inference Protocol", "version": "2.0"},
    "paths": paths,
    "components": {"schemas": definitions},
}
print(json.dumps(document))
