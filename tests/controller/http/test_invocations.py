"""MLflow's scoring protocol, and versions of every contract, as a controller serves them."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.types import ColSpec, Schema, TensorSpec

from app.api_keys import new_key
from app.contract import AnyContract, Column, ColumnsContract, ColumnType, Param
from app.contract.packed_columns import unpack
from app.ledger.wire import Array, JobOutcome
from app.ledger.worker_ledger import ClaimedBatch
from tests.controller.conftest import HandWorker, Serve, Served, nothing_is_queued
from tests.pool_samples import PAIR, outcome
from workers.job_inputs import decode
from workers.signature import read_contract

TWO_COLUMNS = ModelSignature(inputs=Schema([ColSpec("string", "t"), ColSpec("double", "x")]))
TENSOR = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))
NAMED = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("int64"), (-1, 2), "ids"), TensorSpec(np.dtype("bool"), (-1,), "on")])
)
ROW = ColumnsContract(
    (Column("a", ColumnType("long")), Column("t", ColumnType("string"), False)), (Param("k", "long"),)
)


def answered(batch: ClaimedBatch, **job: Any) -> Any:
    jobs = [JobOutcome("succeeded", **job) for _ in batch.head.jobs]
    return outcome(len(jobs), jobs=jobs, schema_version=3)


async def invoke(
    served: Served,
    worker: HandWorker,
    path: str = "/invocations",
    result: JobOutcome | None = None,
    **request: Any,
) -> Any:
    """The answer to a request whose job the worker answers."""
    sent = asyncio.create_task(served.http.post(path, **request))
    batch = await worker.claimed()
    own = result or JobOutcome("succeeded", outputs=b'[{"0":"x"}]')
    worker.finish(batch, outcome(1, jobs=[own], schema_version=3))
    return await sent


async def test_a_client_of_mlflow_is_answered_as_by_mlflow(serve: Serve, hand_worker: Any) -> None:
    worker: HandWorker = hand_worker(input=ROW, aliases={"champion": 1}, aliases_read_at_ms=1)
    served = await serve()
    body = {"dataframe_split": {"columns": ["a"], "data": [[1], [True]]}, "junk": 1}
    for path in (
        "/invocations",
        f"/models/{worker.record.model_name}/invocations",
        f"/models/{worker.record.model_name}/versions/1/invocations",
        f"/models/{worker.record.model_name}@champion/invocations",
        f"/endpoints/{worker.record.model_name}/invocations",
        f"/models/{worker.record.model_name}/versions/champion/invocations",
        f"/models/{worker.record.model_name}/invocations?version=1",
        "/invocations?worker=1",
    ):
        answer = await invoke(served, worker, path, json=body)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [{"0": "x"}]})
    text = await invoke(
        served, worker, content="a,t\n1,x\n", headers={"content-type": "text/csv; charset=UTF-8"}
    )
    assert text.status_code == 200
    # MLflow's own documentation prints this content type, and MLflow refuses it.
    semicolon: dict[str, Any] = {
        "content": b'{"inputs": {"a": [1]}}',
        "headers": {"content-type": "application/json;"},
    }
    assert (await invoke(served, worker, **semicolon)).status_code == 200
    unified = {"messages": [{"role": "user", "content": "hi"}], "a": 1}
    answer = await invoke(served, worker, json=unified, result=JobOutcome("succeeded", outputs=b'{"x":1}'))
    assert (answer.status_code, answer.json()) == (200, {"x": 1})
    for path, status in (("/ping", 200), ("/health", 200), ("/version", 200)):
        assert (await served.http.get(path)).status_code == status


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/models/{}/versions/1/invocations?version=2", 400, "INVALID_PARAMETER_VALUE"),
        ("/models/{}/invocations?model=Other", 400, "INVALID_PARAMETER_VALUE"),
        ("/models/{}/invocations?version=7", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/models/{}/versions/nobody/invocations", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/models/{}/versions/0/invocations", 400, "INVALID_PARAMETER_VALUE"),
        ("/endpoints/{}/invocations?endpoint=Other", 400, "INVALID_PARAMETER_VALUE"),
        ("/endpoints/Nobody/invocations", 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
async def test_a_path_and_a_query_that_name_no_version_together_are_refused(
    serve: Serve, hand_worker: Any, client: Any, path: str, status: int, code: str
) -> None:
    worker: HandWorker = hand_worker(input=ROW)
    served = await serve()
    answer = await served.http.post(path.format(worker.record.model_name), json={"inputs": {"a": [1]}})
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert nothing_is_queued(client)


async def test_the_predictions_of_a_plain_tensor_are_its_scores_or_values(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=PAIR)
    served = await serve()
    scores = np.array([[0.25, 0.75]], "<f4").tobytes()
    for own, expected in (
        (JobOutcome("succeeded", [1], scores), [[0.25, 0.75]]),
        (JobOutcome("succeeded", [1.5]), [1.5]),
        (
            JobOutcome("succeeded", [3.0], outputs=Array("float64", (1, 1), np.array([3.0]).tobytes())),
            [[3.0]],
        ),
    ):
        answer = await invoke(served, worker, json={"inputs": [[1, 2]]}, result=own)
        assert answer.json() == {"predictions": expected}


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        (
            "application/json",
            b'{"dataframe_split": {"columns": ["b"], "data": [[1]]}}',
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        ("application/json", b'{"dataframe_split": {"columns": ["a"], "data": [["x"]]}}', 400, "BAD_REQUEST"),
        ("application/json", b"[1]", 400, "BAD_REQUEST"),
        ("application/json", b"{", 400, "BAD_REQUEST"),
        ("application/json", b'{"data": [1]}', 400, "BAD_REQUEST"),
        ("text/csv", b"b\n1\n", 400, "INVALID_PARAMETER_VALUE"),
        ("text/plain", b"{}", 415, ""),
        ("application/json; charset=latin-1", b"{}", 415, ""),
        ("application/json; format=pandas-split", b"{}", 415, ""),
    ],
)
async def test_a_bad_request_is_refused_as_by_mlflow_and_nothing_is_queued(
    serve: Serve, hand_worker: Any, client: Any, content_type: str, body: bytes, status: int, code: str
) -> None:
    hand_worker(input=ROW)
    served = await serve()
    answer = await served.http.post("/invocations", content=body, headers={"content-type": content_type})
    assert answer.status_code == status
    if code:
        assert answer.json()["error_code"] == code
        assert answer.json()["message"]
    assert nothing_is_queued(client)


class Unasked:
    """A model that no request may reach."""

    def predict(self, data: Any, params: Any = None) -> Any:
        raise AssertionError(data)


def error_code_of_mlflow(signature: ModelSignature | None, body: bytes, content_type: str) -> str:
    model = PyFuncModel(Model(signature=signature), Unasked())
    with pytest.raises(MlflowException) as refused:
        scoring_server.invocations(body, content_type, model, signature and signature.inputs)
    return str(refused.value.error_code)


MALFORMED = [
    "",
    "{",
    "null",
    "[1]",
    "{}",
    '{"data": [1]}',
    '{"inputs": [1], "instances": [1]}',
    '{"dataframe_split": null}',
    '{"dataframe_split": []}',
    '{"dataframe_split": {}}',
    '{"dataframe_split": {"columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": 5, "columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": [["a", 1]], "columns": "tx"}}',
    '{"dataframe_split": {"data": [["a", 1]], "columns": 5}}',
    '{"dataframe_split": {"data": [["a", 1]], "columns": ["t", "x"], "dtype": 1}}',
    '{"dataframe_split": {"data": [["a", 1, 2]], "columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": [["a"]], "columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": [[]], "columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": [["a", 1], 5], "columns": ["t", "x"]}}',
    '{"dataframe_split": {"data": ["a", "b"], "columns": ["t", "x"]}}',
    '{"dataframe_records": null}',
    '{"dataframe_records": {"t": "a", "x": 1}}',
    '{"dataframe_records": "x"}',
]
UNFIT = [
    '{"dataframe_split": {"data": [["a", 1]], "columns": ["t", "y"]}}',
    '{"dataframe_split": {"data": [["a", 1]]}}',
    '{"dataframe_split": {"data": [["a", "q"]], "columns": ["t", "x"]}}',
    '{"dataframe_records": [{"t": "a"}]}',
    '{"dataframe_records": [5]}',
    '{"inputs": [["a", 1]]}',
    '{"inputs": {"t": ["a", "b"], "x": [1]}}',
    '{"instances": [{"t": "a"}]}',
]


@pytest.mark.parametrize(
    ("signature", "content_type", "bodies"),
    [
        (TWO_COLUMNS, "application/json", [*MALFORMED, *UNFIT]),
        (None, "application/json", MALFORMED[:10] + MALFORMED[-3:]),
        (TWO_COLUMNS, "text/csv", ["", "\n\n", 't,x\n"a,1\n', "t;x\na;1\n", "t\na\n", "t,x\na,q\n"]),
        (
            TENSOR,
            "application/json",
            [
                '{"inputs": [[1, 2], [3]]}',
                '{"instances": [[1, 2], [3]]}',
                '{"inputs": {"a": [1, 2]}}',
                '{"inputs": null}',
                '{"inputs": [[1, 2, 3]]}',
                '{"inputs": [1, 2]}',
                '{"inputs": [["q", 1]]}',
                '{"dataframe_records": 5}',
                '{"dataframe_split": {"columns": "ab", "data": [[1, 2]]}}',
            ],
        ),
        (
            NAMED,
            "application/json",
            [
                '{"inputs": {"ids": [[1, 2], [3]], "on": [true, true]}}',
                '{"inputs": {"ids": [[1, 2]]}}',
                '{"inputs": {"ids": [1, 2], "on": [true]}}',
                '{"inputs": {"ids": [["a", 2]], "on": [true]}}',
            ],
        ),
    ],
    ids=["columns", "none", "csv", "tensor", "tensors"],
)
async def test_a_refused_body_has_the_error_code_of_mlflow(
    serve: Serve,
    hand_worker: Any,
    client: Any,
    signature: ModelSignature | None,
    content_type: str,
    bodies: list[str],
) -> None:
    written = signature.to_dict() if signature else {}
    hand_worker(input=read_contract({"inputs": json.loads(written["inputs"])} if signature else {}))
    served = await serve()
    for body in bodies:
        answer = await served.http.post(
            "/invocations", content=body.encode(), headers={"content-type": content_type}
        )
        code = error_code_of_mlflow(signature, body.encode(), content_type)
        assert (answer.status_code, answer.json()["error_code"]) == (400, code), f"{body}: {answer.text}"
    assert nothing_is_queued(client)


async def test_a_job_that_failed_and_a_pool_without_workers_have_mlflow_s_error_document(
    serve: Serve, hand_worker: Any
) -> None:
    served = await serve()
    none = await served.http.post("/invocations", json={"inputs": [[1, 2]]})
    assert (none.status_code, none.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert none.headers["retry-after"]
    assert (await served.http.get("/ping")).status_code == 503
    worker: HandWorker = hand_worker(input=ROW)
    await served.app.services.watcher.refresh()
    failed = JobOutcome("failed", error_code="model_failed", error_detail="the model failed on this input")
    answer = await invoke(served, worker, json={"inputs": {"a": 1}}, result=failed)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
    missing = await served.http.post("/models/Nobody/invocations", json={"inputs": {"a": 1}})
    assert (missing.status_code, missing.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


async def test_jobs_share_a_batch_only_with_equal_parameters_and_columns(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=ROW)
    served = await serve()
    first = await served.post(b'{"inputs": {"a": 0}}')
    assert first.status_code == 202
    batch = await worker.claimed()
    bodies = [
        b'{"inputs": {"a": 1}, "params": {"k": 1}}',
        b'{"inputs": {"a": 2}, "params": {"k": 2}}',
        b'{"inputs": {"a": 3}, "params": {"k": 1}}',
        b'{"inputs": {"a": 4, "t": "x"}, "params": {"k": 1}}',
    ]
    sent = [asyncio.create_task(served.post(body)) for body in bodies]
    found: list[list[int]] = []
    worker.finish(batch, answered(batch, outputs=b"[0]"))
    while sum(map(len, found)) < len(bodies):
        batch = await worker.claimed()
        ends = np.cumsum([0, *batch.head.sizes])
        jobs = [decode(batch.data[start:end]) for start, end in pairwise(ends)]
        found.append([job[0][0] for job in jobs])
        assert batch.head.kind == "columns"
        worker.finish(batch, answered(batch, outputs=b"[0]"))
    assert {each.status_code for each in await asyncio.gather(*sent)} == {202}
    assert sorted(map(sorted, found)) in ([[1, 3], [2], [4]], [[1], [2], [3], [4]])


async def test_jobs_of_a_version_without_a_signature_never_share_a_batch(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=AnyContract())
    served = await serve()
    answers = await asyncio.gather(*[served.post(b'{"inputs": [[1, "x"]]}') for _ in range(3)])
    assert {each.status_code for each in answers} == {202}
    for _ in range(3):
        batch = await worker.claimed()
        assert (batch.head.kind, len(batch.head.jobs)) == ("any", 1)
        assert decode(batch.data) == ["inputs", [[1, "x"]]]
        worker.finish(batch, answered(batch, outputs=b'{"any": null}'))
    job = await served.http.get(answers[0].json()["result_url"])
    assert job.json()["outputs"] == {"any": None}
    assert "predictions" not in job.json()


async def test_a_pool_of_several_contracts_takes_a_body_to_the_version_that_it_fits(
    serve: Serve, hand_worker: Any
) -> None:
    hand_worker(1, input=PAIR, val_accuracy=0.9)
    hand_worker(2, input=ROW, val_accuracy=0.8)
    served = await serve()
    plain, rows = await served.post(b'{"data": [1, 2]}'), await served.post(b'{"inputs": {"a": 1}}')
    assert (plain.json()["worker"], rows.json()["worker"]) == (1, 2)
    pool = (await served.http.get("/workers")).json()["workers"]
    assert pool[0]["input"] == {"dtype": "float32", "shape": [-1, 2]}
    assert [each["name"] for each in pool[1]["input"]["columns"]] == ["a", "t"]


async def test_a_caller_may_take_the_job_instead_and_is_told_when_the_outcome_does_not_come_in_time(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=ROW)
    served = await serve()
    body = {"inputs": {"a": [1, 2]}}
    later = await served.http.post("/invocations", json=body, headers={"prefer": "respond-async"})
    assert (later.status_code, later.json()["status"]) == (202, "queued")
    batch = await worker.claimed()
    worker.finish(batch, answered(batch, outputs=b"[1,2]"))
    job = await served.http.get(f"{later.headers['location']}?wait=5")
    assert (job.json()["status"], job.json()["outputs"]) == ("succeeded", [1, 2])
    late = await served.http.post("/invocations?wait=0.05", json=body)
    assert (late.status_code, late.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
    unread = await served.http.post("/invocations", json=body, headers={"content-encoding": "br"})
    assert (unread.status_code, unread.json()["code"]) == (415, "content_coding_unsupported")


async def test_a_large_table_is_read_beside_small_ones(serve: Serve, hand_worker: Any) -> None:
    worker: HandWorker = hand_worker(input=ColumnsContract((Column("x", ColumnType("double")),)))
    served = await serve()
    rows = 20_000
    body = {"dataframe_split": {"columns": ["x"], "data": [[row / 7] for row in range(rows)]}}
    refused = await served.post(json.dumps(body).encode())
    assert (refused.status_code, refused.json()["code"]) == (413, "request_too_large")
    served = await serve(max_samples=rows)
    answer = await served.post(json.dumps(body).encode())
    assert answer.status_code == 202
    batch = await worker.claimed()
    [column] = decode(batch.data)
    assert unpack(column, "double")[:2].tolist() == [0.0, 1 / 7]
    worker.finish(batch, answered(batch, outputs=b"[]"))


@pytest.mark.parametrize("path", ["/invocations", "/models/Any/invocations", "/endpoints/Any/invocations/"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer nobody"}])
async def test_a_request_without_a_valid_key_has_the_error_document_of_mlflow(
    serve: Serve, hand_worker: Any, client: Any, path: str, headers: dict[str, str]
) -> None:
    hand_worker(input=ROW)
    served = await serve(api_keys=new_key("shop", "predict")[1].line())
    answer = await served.http.post(path, json={"inputs": {"a": [1]}}, headers=headers)
    document = answer.json()
    assert (answer.status_code, document["error_code"]) == (401, "UNAUTHENTICATED")
    assert document["message"].startswith("the API key is ")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="modelyard"'
    assert nothing_is_queued(client)
