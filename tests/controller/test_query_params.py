"""A model's parameters in the query, for bodies that have no place for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.contract import Column, ColumnsContract, ColumnType, Param, TensorField, TensorsContract
from controller.input import bodies
from tests.controller.conftest import HandWorker, Serve
from workers.job_inputs import decode

PARAMS = (Param("k", "long", "1"),)
TENSOR = TensorsContract((TensorField("x", "float32", (-1, 2)),), PARAMS)
TABLE = ColumnsContract((Column("x", ColumnType("double")),), PARAMS)


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((1, 2), np.float32))
    return file.getvalue()


def arrow() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": [0.5]})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("contract", "content_type", "body"),
    [
        (TENSOR, bodies.NPY, npy()),
        (TABLE, bodies.ARROW_STREAM, arrow()),
        (TABLE, bodies.CSV, b"x\n0.5\n"),
        (TABLE, bodies.JSON, b'{"dataframe_split": {"columns": ["x"], "data": [[0.5]]}}'),
    ],
    ids=["npy", "arrow", "csv", "json"],
)
async def test_params_of_the_query_reach_the_model(
    contract: Any, content_type: bytes, body: bytes, serve: Serve, hand_worker: Callable[..., HandWorker]
) -> None:
    worker = hand_worker(input=contract)
    served = await serve()
    headers = {"content-type": content_type.decode()}
    accepted = await served.http.post(
        "/predict", params={"params": '{"k": 3}'}, content=body, headers=headers
    )
    assert accepted.status_code == 202, accepted.text
    assert decode((await worker.claimed()).head.params) == {"k": 3}


@pytest.mark.parametrize(
    ("params", "in_body", "status", "code"),
    [
        ("[1]", "", 422, "parameter_invalid"),
        ("{", "", 422, "parameter_invalid"),
        ('{"z": 1}', "", 422, "params_invalid"),
        ('{"k": 1}', ', "params": {"k": 1}', 422, "body_wrong_key"),
    ],
    ids=["no object", "no JSON", "unknown", "in the body too"],
)
async def test_params_that_do_not_fit_are_refused(
    params: str, in_body: str, status: int, code: str, serve: Serve, hand_worker: Callable[..., HandWorker]
) -> None:
    hand_worker(input=TENSOR)
    served = await serve()
    body = f'{{"inputs": {{"x": [[1, 2]]}}{in_body}}}'
    answer = await served.http.post("/predict", params={"params": params}, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_an_idempotency_key_belongs_to_the_params_as_well(
    serve: Serve, hand_worker: Callable[..., HandWorker]
) -> None:
    hand_worker(input=TENSOR)
    served = await serve()

    async def status(k: int) -> int:
        headers = {"content-type": bodies.NPY.decode(), "idempotency-key": "once"}
        asked = {"params": f'{{"k": {k}}}'}
        answer = await served.http.post("/predict", params=asked, content=npy(), headers=headers)
        return int(answer.status_code)

    assert [await status(1), await status(1), await status(2)] == [202, 202, 409]
