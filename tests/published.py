"""Holds answers against the schemas that `/openapi.json` publishes."""

from __future__ import annotations

from typing import Any

import jsonschema_rs


def problems(name: str, value: Any, schemas: dict[str, Any]) -> list[str]:
    """What a JSON value has that the document of that name has not, or lacks.

    Args:
        name: Name of the document, such as `Job`.
        value: The value, read from JSON.
        schemas: `components.schemas` of an OpenAPI document; a field that they do not name is a problem too.
    """
    closed = {each: schema | {"additionalProperties": False} for each, schema in schemas.items()}
    whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": closed}}
    return [
        f"{error.instance_path}: {error.message}"
        for error in jsonschema_rs.validator_for(whole).iter_errors(value)
    ]


def document_of(response: dict[str, Any]) -> str:
    """Name of the document that a response object of an OpenAPI document refers to."""
    [content] = response["content"].values()
    reference: str = content["schema"]["$ref"]
    return reference.rpartition("/")[2]
