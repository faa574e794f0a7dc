"""The OpenAPI document of a version: valid, true to its contract, and complete without the rest of the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from app.api_keys import new_key
from app.contract import (
    FREE,
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    Param,
    TensorContract,
    TensorField,
    TensorsContract,
)
from app.server_errors import ModelyardError
from controller.http.contract_schemas import body_schema, outputs_schema
from controller.input.job_samples import read_samples
from controller.pool_snapshot import build_snapshot
from controller.routing import routes
from controller.selector import Selector
from tests.controller.conftest import HandWorker, Serve
from tests.pool_samples import record
from tests.published import openapi_problems

HandWorkers = Callable[..., HandWorker]
ADDRESS = ColumnType(
    "object", properties=(Column("zip", ColumnType("string")), Column("n", ColumnType("long"), False))
)
TABLE = ColumnsContract(
    (
        Column("n", ColumnType("long")),
        Column("x", ColumnType("double")),
        Column("t", ColumnType("string"), required=False),
    ),
    (Param("k", "long", "3"),),
)
NESTED = ColumnsContract(
    (
        Column("tags", ColumnType("array", ColumnType("string"))),
        Column("to", ADDRESS),
        Column("by", ColumnType("map", ColumnType("boolean"))),
    )
)
PLACED = ColumnsContract((Column(None, ColumnType("float")), Column(None, ColumnType("integer"))))
IMAGE = TensorContract("uint8", (1, 2, 2))
PAIRS = TensorsContract(
    (TensorField("a", "int64", (FREE, 2)), TensorField("b", "str", (FREE,))), (Param("k", "string"),)
)
ONE = TensorsContract((TensorField(None, "float64", (FREE, FREE)),), allows_missing=True)
CONTRACTS: dict[str, tuple[Contract, list[Any], list[Any]]] = {
    "columns with names": (
        TABLE,
        [
            {"dataframe_split": {"columns": ["n", "x"], "data": [[1, 1.5], [2, None]]}, "params": {"k": 1}},
            {"dataframe_records": [{"n": 1, "x": 2, "t": None}]},
            {"inputs": {"n": [1], "x": [2.5]}},
            {"data": [{"n": 1, "x": 2}]},
        ],
        [
            {"dataframe_records": [{"n": 1.5, "x": 2}]},
            {"dataframe_records": [{"n": 2**63, "x": 2}]},
            {"dataframe_records": [{"n": 1}]},
            {"dataframe_records": [{"n": 1, "x": 2}], "params": {"k": "1"}},
            {"dataframe_records": [{"n": 1, "x": 2}], "params": {"other": 1}},
            {"dataframe_split": {"data": [[1, 1.5]]}},
            {"inputs": {"n": [1], "x": ["2"]}},
            {"rows": []},
        ],
    ),
    "nested columns": (
        NESTED,
        [
            {"inputs": [{"tags": ["a"], "to": {"zip": "1"}, "by": {"b": True}}]},
            {"inputs": {"tags": [], "to": {"zip": "1", "n": 2}, "by": {}}},
        ],
        [
            {"inputs": [{"tags": ["a"], "to": {"n": 1}, "by": {}}]},
            {"inputs": [{"tags": ["a"], "to": {"zip": "1", "m": 1}, "by": {}}]},
            {"inputs": [{"tags": [1], "to": {"zip": "1"}, "by": {}}]},
            {"inputs": [{"tags": ["a"], "to": {"zip": "1"}, "by": {"b": 1}}]},
        ],
    ),
    "columns by position": (
        PLACED,
        [{"inputs": [[1.5, 2], [None, 3]]}, {"dataframe_split": {"data": [[1, 2]]}}],
        [{"inputs": [[1.5]]}, {"inputs": [[1.5, 2.5]]}, {"inputs": [[1.5, 2**31]]}, {"inputs": {"a": [1]}}],
    ),
    "a plain tensor": (
        IMAGE,
        [{"data": [1, 2, 3, 4]}, {"inputs": [[[[1, 2], [3, 4]]]]}, {"data": [[1, 2], [3, 4]]}],
        [{"data": [1, 2, 3]}, {"data": [1, 2, 3, 256]}, {"data": [1, 2, 3, None]}],
    ),
    "named tensors": (
        PAIRS,
        [{"inputs": {"a": [[1, 2]], "b": ["x"]}, "params": {"k": "v"}}, {"inputs": [{"a": [1, 2], "b": "x"}]}],
        [{"inputs": {"a": [[1, 2]]}}, {"inputs": {"a": [[1]], "b": ["x"]}}, {"inputs": {"a": [[1, 2]], "b": [1]}}],
    ),
    "an unnamed tensor with gaps": (ONE, [{"inputs": [[1.5, None], [2, 3]]}], [{"inputs": [1.5]}, {"inputs": [["1"]]}]),
    "anything": (AnyContract(), [{"inputs": 5}, {"data": [{"a": 1}]}], [{"rows": 1}]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRACTS.values(), ids=CONTRACTS)
def test_a_schema_takes_and_refuses_what_its_contract_does(
    case: tuple[Contract, list[Any], list[Any]],
) -> None:
    contract, good, bad = case
    validator = jsonschema_rs.Draft202012Validator(body_schema(contract))
    worker = record(input=contract)
    possible = routes(build_snapshot([worker], {worker.queue: 1}, {}), Selector())

    def read(body: Any) -> None:
        read_samples(b"application/json", json.dumps(body).encode(), possible, 100)

    for body in good:
        read(body)
        validator.validate(body)
    for body in bad:
        with pytest.raises(ModelyardError):
            read(body)
        assert not validator.is_valid(body), body


@pytest.mark.parametrize("case", CONTRACTS.values(), ids=CONTRACTS)
async def test_each_version_has_a_valid_document_of_its_own(
    serve: Serve, hand_worker: HandWorkers, case: tuple[Contract, list[Any], list[Any]]
) -> None:
    contract, [example, *_], _ = case
    name = "Model {1} ä"
    hand_worker(
        model_name=name,
        input=contract,
        outputs=contract,
        example=json.dumps(example),
        aliases={"champion": 1},
        aliases_read_at_ms=1,
    )
    served = await serve(root_path="/pre")
    answer = await served.http.get(f"/pre/models/{name}/versions/champion/openapi.json")
    document = answer.json()
    assert not openapi_problems(document)
    assert document["servers"] == [{"url": "/pre"}]
    [path, _] = document["paths"]
    assert path == "/models/Model%20%7B1%7D%20%C3%A4/versions/1/predict"
    predict = document["paths"][path]["post"]
    assert ("params" in [each["name"] for each in predict["parameters"]]) == bool(contract.params)
    assert predict["responses"]["200"]["content"]["application/json"] == {
        "schema": {"$ref": "#/components/schemas/Job"}
    }
    outputs = document["components"]["schemas"]["Job"]["properties"]["outputs"]
    assert outputs_schema(contract).items() <= outputs.items()
    body = predict["requestBody"]["content"]
    assert body["application/json"]["example"] == example
    assert (
        ("text/csv" in body, "application/octet-stream" in body)
        == (contract in (TABLE, PLACED), contract is IMAGE)
    )  # fmt: skip
    posted = await served.http.post(path, json=body["application/json"]["example"])
    assert posted.status_code == 202, posted.text


async def test_a_version_that_is_not_served_has_no_document(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve()
    base = f"/models/{worker.record.model_name}/versions"
    for path, status, code in (
        (f"{base}/9/openapi.json", 404, "model_unknown"),
        (f"{base}/winner/openapi.json", 404, "model_unknown"),
        ("/models/Nobody/versions/1/openapi.json", 404, "model_unknown"),
        (f"{base}/0/openapi.json", 422, "parameter_invalid"),
    ):
        answer = await served.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    worker.stop()
    await served.services.watcher.refresh()
    answer = await served.http.get(f"{base}/1/openapi.json")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_candidate")


async def test_the_documentation_shows_the_examples_of_all_versions_where_no_key_is_needed(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    pair = '{"inputs": [[1, 2]]}'
    hand_worker(1, example=pair)
    hand_worker(2, example=pair)
    hand_worker(3)
    [open_, guarded] = [
        await serve(**fields) for fields in ({}, {"api_keys": new_key("shop", "predict")[1].line()})
    ]
    paths, guarded_paths = [
        (await served.http.get("/openapi.json")).json()["paths"] for served in (open_, guarded)
    ]
    assert not openapi_problems((await open_.http.get("/openapi.json")).json())
    shown = examples_in(paths)
    assert len(shown) == 8
    for path, examples in shown.items():
        assert [each["value"] for each in examples.values()] == [json.loads(pair)] * 2, path
    assert {path: list(each) for path, each in examples_in(guarded_paths).items()} == {
        path: ["a blank digit"] for path in shown
    }
    named = {
        parameter["name"]: parameter["example"]
        for parameter in paths["/models/{name}/versions/{version}/predict"]["post"]["parameters"]
        if parameter["in"] == "path"
    }
    for path in shown.keys() - {path for path in shown if path.startswith("/endpoints/")}:
        answer = await open_.http.post(
            path.format(**named), headers={"prefer": "respond-async"}, content=pair
        )
        assert (answer.status_code, path) == (202, path)


def examples_in(paths: dict[str, Any]) -> dict[str, Any]:
    """The examples of each path's POST that has any in JSON."""
    bodies = {path: each["post"].get("requestBody", {}) for path, each in paths.items() if "post" in each}
    contents = {path: body.get("content", {}).get("application/json", {}) for path, body in bodies.items()}
    return {path: content["examples"] for path, content in contents.items() if "examples" in content}
