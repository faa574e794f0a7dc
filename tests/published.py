"""Holds answers against the schemas that `/openapi.json` publishes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs


def problems(name: str, value: Any, schemas: dict[str, Any]) -> list[str]:
    """What a JSON value has that the document of that name has not, or lacks.

    Args:
        name: Name of the document, such as `Job`.
        value: The value, read from JSON.
        schemas: `components.schemas` of an OpenAPI document; a field that they do not name is a problem too.
    """
    return schema_problems({"$ref": f"#/components/schemas/{name}"}, value, schemas)


def schema_problems(schema: dict[str, Any], value: Any, schemas: dict[str, Any]) -> list[str]:
    """The same for any schema that may refer to documents."""
    closed = {each: schema | {"additionalProperties": False} for each, schema in schemas.items()}
    whole = schema | {"components": {"schemas": closed}}
    return [
        f"{error.instance_path}: {error.message}"
        for error in jsonschema_rs.validator_for(whole).iter_errors(value)
    ]


def openapi_problems(document: dict[str, Any]) -> list[str]:
    """What an OpenAPI 3.1 document has that the specification's own schema or code generators refuse.

    Generators leave out an operation with an array without `items`; linters want every tag, server and access stated.
    """
    # Only one test needs it, and it takes a second.
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

    found = [
        f"{error.instance_path}: {error.message}" for error in OPENAPI_31_VALIDATOR.iter_errors(document)
    ]
    found += [f"no {each}" for each in _references(document) if not _resolves(document, each)]
    found += [
        f"no items: {each}"
        for each in _objects(document)
        if each.get("type") == "array" and "items" not in each
    ]
    operations = [each for path in document["paths"].values() for each in path.values()]
    tags = {each["name"] for each in document["tags"]}
    found += [f"unknown tags: {each['tags']}" for each in operations if not tags.issuperset(each["tags"])]
    found += [f"no security: {each['operationId']}" for each in operations if "security" not in each]
    return found if document.get("servers") else [*found, "no servers"]


def misfits(document: dict[str, Any], described: dict[str, Any], value: Any) -> list[str]:
    """How a JSON body differs from the schema of a request or answer of an OpenAPI document."""
    schema = {**described["content"]["application/json"]["schema"], "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    return [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(value)]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(each)


def _references(document: Any) -> list[str]:
    return [each["$ref"] for each in _objects(document) if isinstance(each.get("$ref"), str)]


def _resolves(document: Any, reference: str) -> bool:
    for name in reference.removeprefix("#/").split("/"):
        document = document.get(name, {})
    return bool(document)


def document_of(response: dict[str, Any]) -> str:
    """Name of the document that a response object of an OpenAPI document refers to."""
    [content] = response["content"].values()
    reference: str = content["schema"]["$ref"]
    return reference.rpartition("/")[2]
