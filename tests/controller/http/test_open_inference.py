"""The Open Inference Protocol, as a controller serves it to its clients."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import numpy as np
import pytest

from app.contract import (
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Param,
    TensorField,
    TensorsContract,
)
from app.ledger.wire import Array, JobOutcome
from app.ledger.worker_ledger import ClaimedBatch
from controller.input.inference_request import DATATYPES
from tests.controller.conftest import HandWorker, Serve, Served, nothing_is_queued, until
from tests.pool_samples import MODEL, PAIR, outcome
from workers.job_inputs import decode

ROW = ColumnsContract(
    (
        Column("a", ColumnType("long")),
        Column("b", ColumnType("double")),
        Column("t", ColumnType("string"), False),
        Column("raw", ColumnType("binary"), False),
        Column("list", ColumnType("array", ColumnType("long")), False),
    ),
    (Param("k", "long"),),
)
TWO = TensorsContract((TensorField("ids", "int64", (-1, -1)), TensorField("text", "str", (-1,))))
INFER = f"/v2/models/{MODEL}/infer"
DONE = JobOutcome("succeeded", outputs=b'["x"]')


def tensor(name: str, datatype: str, shape: Any, data: Any = None, size: int | None = None) -> Any:
    own = {"data": data} if size is None else {"parameters": {"binary_data_size": size}}
    return {"name": name, "datatype": datatype, "shape": shape, **own}


def binary(document: Any, *parts: bytes) -> dict[str, Any]:
    """A request with tensors as bytes."""
    text = json.dumps(document).encode()
    return {
        "content": b"".join([text, *parts]),
        "headers": {"inference-header-content-length": str(len(text))},
    }


def of_elements(*elements: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


async def infer(
    served: Served, worker: HandWorker, result: JobOutcome = DONE, path: str = INFER, **request: Any
) -> tuple[Any, ClaimedBatch]:
    """The answer to a request whose job the worker answers, and what the worker took."""
    sent = asyncio.create_task(served.http.post(path, **request))
    claimed = asyncio.create_task(worker.claimed())
    await asyncio.wait({sent, claimed}, return_when=asyncio.FIRST_COMPLETED)
    assert not sent.done(), sent.result().text
    batch = await claimed
    worker.finish(batch, outcome(1, jobs=[result], schema_version=3))
    return await sent, batch


async def test_a_server_tells_that_it_lives_and_what_its_models_take(serve: Serve, hand_worker: Any) -> None:
    served = await serve()
    get = served.http.get
    for path in ("/v2", "/v2/"):
        assert (await get(path)).json()["extensions"] == ["binary_tensor_data", "model_configuration"]
    assert (await get("/v2/health/live")).json() == {"live": True}
    idle = await get("/v2/health/ready")
    assert (idle.status_code, idle.json()) == (503, {"ready": False})
    hand_worker(1, input=PAIR, val_accuracy=0.8, aliases={"champion": 1}, aliases_read_at_ms=1)
    hand_worker(2, input=ROW, outputs=PAIR, val_accuracy=0.9)
    await served.app.services.watcher.refresh()
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    for path in (f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}/versions/1/ready"):
        assert (await get(path)).json() == {"name": MODEL, "ready": True}
    routed, first = await get(f"/v2/models/{MODEL}"), await get(f"/v2/models/{MODEL}/versions/1")
    for path in (f"/v2/models/{MODEL}@champion", f"/v2/models/{MODEL}/versions/champion"):
        assert (await get(path)).json() == first.json()
    nobody = await get(f"/v2/models/{MODEL}/versions/nobody")
    assert (nobody.status_code, nobody.headers["content-type"]) == (404, "application/json")
    assert routed.json()["versions"] == ["1", "2"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in routed.json()["inputs"]] == [
        ("a", "INT64", [-1, 1]),
        ("b", "FP64", [-1, 1]),
        *[(name, "BYTES", [-1, 1]) for name in ("t", "raw", "list")],
    ]
    assert routed.json()["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 2]}]
    assert first.json()["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 2]}]


async def test_a_client_of_triton_reads_its_configuration_and_the_index_of_models(
    serve: Serve, hand_worker: Any
) -> None:
    hand_worker(1, input=PAIR, val_accuracy=0.8)
    hand_worker(2, input=ROW, outputs=PAIR, val_accuracy=0.9, aliases={"champion": 2}, aliases_read_at_ms=1)
    hand_worker(3, input=AnyContract(), val_accuracy=0.7)
    served = await serve(max_samples=7)
    routed = (await served.http.get(f"/v2/models/{MODEL}/config")).json()
    assert (routed["name"], routed["max_batch_size"]) == (MODEL, 7)
    assert (await served.http.get(f"/v2/models/{MODEL}@champion/config")).json() == routed
    assert [(each["data_type"], each["dims"]) for each in routed["input"]] == [
        ("TYPE_INT64", [1]),
        ("TYPE_FP64", [1]),
        *[("TYPE_STRING", [1])] * 3,
    ]
    assert routed["output"] == [{"name": "output-0", "data_type": "TYPE_FP32", "dims": [2]}]
    anything = (await served.http.get(f"/v2/models/{MODEL}/versions/3/config")).json()
    assert (anything["max_batch_size"], anything["input"]) == (0, [])
    index = (await served.http.post("/v2/repository/index")).json()
    assert [(each["version"], each["state"]) for each in index] == [
        (version, "READY") for version in ("1", "2", "3")
    ]
    assert (await served.http.get("/v2/models/Nobody/config")).status_code == 404


@pytest.mark.parametrize("is_binary", [False, True])
async def test_numbers_of_each_datatype_go_to_the_worker_and_back_exactly(
    serve: Serve, hand_worker: Any, is_binary: bool
) -> None:
    dtypes = [each for each in DATATYPES if each != "str"]
    workers = [
        hand_worker(number, input=TensorsContract((TensorField("x", dtype, (-1, 3)),)))
        for number, dtype in enumerate(dtypes, 1)
    ]
    served = await serve()
    for dtype, worker in zip(dtypes, workers, strict=True):
        await check_round_trip(served, worker, dtype, is_binary)


async def check_round_trip(served: Served, worker: HandWorker, dtype: str, is_binary: bool) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    if values.dtype.kind != "b":
        values[0, 0] = np.finfo(dtype).max if values.dtype.kind == "f" else np.iinfo(dtype).max
    data, datatype, version = values.tobytes(), DATATYPES[dtype], str(worker.record.model_version)
    result = JobOutcome("succeeded", outputs={"y": Array(dtype, (2, 3), data)})
    path = f"/v2/models/{MODEL}/versions/{version}/infer"
    if is_binary:
        document = {
            "id": "7",
            "inputs": [tensor("x", datatype, [2, 3], size=len(data))],
            "parameters": {"binary_data_output": True},
        }
        answer, batch = await infer(served, worker, result, path, **binary(document, data))
        length = int(answer.headers["inference-header-content-length"])
        said, rest = json.loads(answer.content[:length]), answer.content[length:]
        assert (rest, said["outputs"][0]["parameters"]) == (data, {"binary_data_size": len(data)})
    else:
        body = {"id": "7", "inputs": [tensor("x", datatype, [2, 3], values.reshape(-1).tolist())]}
        answer, batch = await infer(served, worker, result, path, json=body)
        said = answer.json()
        assert np.array(said["outputs"][0]["data"], dtype).tobytes() == data
    assert answer.status_code == 200
    assert (said["id"], said["model_name"], said["model_version"]) == ("7", MODEL, version)
    output = said["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", datatype, [2, 3])
    assert decode(batch.data) == [[dtype, [2, 3], data]]


async def test_text_and_tensors_with_free_dimensions_are_read_flat_nested_and_as_bytes(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=TWO)
    served = await serve()
    ids, texts = np.array([[1, 2, 3], [4, 5, 6]], "<i8"), of_elements("ä".encode(), b"")
    flat = [tensor("ids", "INT64", [2, 3], [1, 2, 3, 4, 5, 6]), tensor("text", "BYTES", [2], ["ä", ""])]
    nested = [flat[1], tensor("ids", "INT64", [2, 3], ids.tolist())]
    packed = [
        tensor("ids", "INT64", [2, 3], size=48),
        tensor("text", "BYTES", [2], size=len(texts)),
    ]
    zipped = gzip.compress(json.dumps({"inputs": flat}).encode())
    for request in (
        {"json": {"inputs": flat}},
        {"json": {"inputs": nested}},
        binary({"inputs": packed}, ids.tobytes(), texts),
        {"content": zipped, "headers": {"content-encoding": "gzip"}},
    ):
        answer, batch = await infer(served, worker, **request)
        assert decode(batch.data) == [["int64", [2, 3], ids.tobytes()], ["str", [2], ["ä", ""]]]
        assert answer.json()["outputs"] == [
            {"name": "output-0", "datatype": "BYTES", "shape": [1], "data": ["x"]}
        ]
    wanted = [{"name": "output-0", "parameters": {"binary_data": True}}]
    answer, _ = await infer(served, worker, json={"inputs": flat, "outputs": wanted})
    assert answer.content.endswith(of_elements(b"x"))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_large_answer_is_packed_as_its_caller_asks(
    serve: Serve, hand_worker: Any, coding: str
) -> None:
    worker: HandWorker = hand_worker(input=PAIR)
    served = await serve()
    numbers = np.arange(2000, dtype="<f4")
    result = JobOutcome("succeeded", outputs=Array("float32", (1, 2000), numbers.tobytes()))
    body = {"inputs": PAIRS, "parameters": {"binary_data_output": True}}
    packed, plain = [
        (await infer(served, worker, result, json=body, headers={"accept-encoding": accepted}))[0]
        for accepted in (coding, "gzip, deflate")
    ]
    assert packed.headers["content-encoding"] == coding
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert "content-encoding" not in plain.headers
    for answer in (packed, plain):  # the client has unpacked the first
        assert answer.content[int(answer.headers["inference-header-content-length"]) :] == numbers.tobytes()
    small, _ = await infer(served, worker, json=body, headers={"accept-encoding": coding})
    assert "content-encoding" not in small.headers


async def test_columns_are_inputs_and_rows_of_the_answer_are_outputs(serve: Serve, hand_worker: Any) -> None:
    worker: HandWorker = hand_worker(input=ROW)
    served = await serve()
    numbers = [tensor("a", "INT64", [2, 1], [1, 2]), tensor("b", "FP64", [2], size=16)]
    body = {
        "parameters": {"k": 3, "content_type": "pd"},
        "inputs": [
            *numbers,
            tensor("t", "BYTES", [2, 1], ["x", None]),
            tensor("raw", "BYTES", [2, 1], size=10),
            tensor("list", "BYTES", [2, 1], ["[1]", "[]"]),
        ],
    }
    floats = np.array([0.5, np.nan])
    rows = JobOutcome("succeeded", outputs=b'[{"p": 1, "q": "a"}, {"p": 2.5, "q": null}]')
    path = f"/v2/models/{MODEL}/versions/1/infer"
    request = binary(body, floats.tobytes(), of_elements(b"\xff\x00", b""))
    answer, batch = await infer(served, worker, rows, path, **request)
    assert decode(batch.data) == [[1, 2], [0.5, None], ["x", None], [b"\xff\x00", b""], [[1], []]]
    assert decode(batch.head.params) == {"k": 3}
    assert answer.json()["outputs"] == [
        {"name": "p", "datatype": "FP64", "shape": [2, 1], "data": [1.0, 2.5]},
        {"name": "q", "datatype": "BYTES", "shape": [2, 1], "data": ["a", None]},
    ]


async def test_a_classifier_answers_its_scores_and_a_version_without_a_signature_anything(
    serve: Serve, hand_worker: Any
) -> None:
    plain: HandWorker = hand_worker(1, input=PAIR)
    anything: HandWorker = hand_worker(2, input=AnyContract())
    served = await serve()
    pair = {"inputs": [tensor("any name", "FP32", [1, 2], [1, 2])]}
    scores = JobOutcome("succeeded", [1], np.array([[0.25, 0.75]], "<f4").tobytes())
    path = f"/v2/models/{MODEL}/versions/1/infer"
    answer, batch = await infer(served, plain, scores, path, json=pair)
    assert batch.data == np.array([1, 2], "<f4").tobytes()
    assert answer.json()["outputs"] == [
        {"name": "output-0", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}
    ]
    values = JobOutcome("succeeded", [3, 4])
    path = f"/v2/models/{MODEL}/versions/2/infer"
    body = {"inputs": [tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), tensor("t", "BYTES", [1], ["u"])]}
    answer, batch = await infer(served, anything, values, path, json=body)
    assert decode(batch.data) == ["inputs", {"x": [[1, 2], [3, 4]], "t": ["u"]}]
    assert answer.json()["outputs"][0] == {
        "name": "output-0",
        "datatype": "INT64",
        "shape": [2],
        "data": [3, 4],
    }


async def test_an_output_without_a_name_has_the_declared_name_datatype_and_shape(
    serve: Serve, hand_worker: Any
) -> None:
    declared = ColumnsContract((Column("price", ColumnType("float")),))
    worker: HandWorker = hand_worker(input=PAIR, outputs=declared)
    served = await serve()
    answer, _ = await infer(served, worker, JobOutcome("succeeded", [1.5]), json={"inputs": PAIRS})
    assert answer.json()["outputs"] == [{"name": "price", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]


PAIRS = [tensor("input-0", "FP32", [1, 2], [1, 2])]
IN_SHARED_MEMORY = {"shared_memory_region": "r", "shared_memory_byte_size": 8}  # as tritonclient asks for it


BAD_REQUESTS: list[tuple[int, Any, tuple[bytes, ...], str]] = [  # version, JSON, bytes after it, code
    (1, [], (), "body_wrong_key"),
    (1, {}, (), "body_wrong_key"),
    (1, {"inputs": []}, (), "body_wrong_key"),
    (1, {"inputs": PAIRS, "id": "\ud800"}, (), "body_wrong_key"),
    (1, {"inputs": [tensor("\ud800", "FP32", "\ud800", [1, 2])]}, (), "body_wrong_key"),
    (1, {"inputs": [tensor("input-0", "FP64", [1, 2], [1, 2])]}, (), "input_wrong_type"),
    (1, {"inputs": [tensor("input-0", "FP33", [1, 2], [1, 2])]}, (), "input_wrong_type"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 3], [1, 2, 3])]}, (), "input_wrong_shape"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], [1])]}, (), "input_wrong_shape"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], [[1], [2]])]}, (), "input_wrong_shape"),
    (1, {"inputs": [tensor("input-0", "FP32", [-1, -2], [1, 2])]}, (), "input_wrong_shape"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], ["1", 2])]}, (), "input_wrong_type"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], [1, 1e300])]}, (), "input_not_finite"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], size=8)]}, (b"1234567",), "input_wrong_shape"),
    (1, {"inputs": [tensor("input-0", "FP32", [1, 2], size=8)]}, (b"123456789",), "input_wrong_shape"),
    (1, {"inputs": PAIRS, "parameters": {"k": 1}}, (), "params_invalid"),
    (
        1,
        {"inputs": [tensor("input-0", "FP32", [1, 2]) | {"parameters": IN_SHARED_MEMORY}]},
        (),
        "parameter_invalid",
    ),
    (
        1,
        {"inputs": PAIRS, "outputs": [{"name": "output-0", "parameters": IN_SHARED_MEMORY}]},
        (),
        "parameter_invalid",
    ),
    (
        1,
        {"inputs": PAIRS, "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
        (),
        "parameter_invalid",
    ),
    (2, {"inputs": [tensor("ids", "INT64", [1, 1], [2**63])]}, (), "input_wrong_shape"),
    (2, {"inputs": [tensor("text", "BYTES", [1], size=6)]}, (b"\x09\0\0\0ab",), "input_wrong_shape"),
    (3, {"inputs": [tensor("c", "INT64", [1], [1])]}, (), "input_wrong_shape"),
    (3, {"inputs": [tensor("a", "INT64", [1], [2**63])]}, (), "input_wrong_type"),
    (3, {"inputs": [tensor("a", "INT64", [1, 2], [1, 2])]}, (), "input_wrong_shape"),
]


async def test_a_request_that_does_not_fit_is_refused_with_400_and_nothing_is_queued(
    serve: Serve, hand_worker: Any, client: Any
) -> None:
    for version, contract in enumerate((PAIR, TWO, ROW), 1):
        hand_worker(version, input=contract)
    served = await serve()
    for version, document, parts, code in BAD_REQUESTS:
        path = f"/v2/models/{MODEL}/versions/{version}/infer"
        answer = await served.http.post(path, **binary(document, *parts))
        assert answer.headers["content-type"] == "application/json"
        said = answer.json()
        assert (answer.status_code, said["code"]) == (400, code), (document, said)
        assert said["error"]
    assert nothing_is_queued(client)


async def test_every_refusal_under_v2_is_the_protocol_s_error(serve: Serve, hand_worker: Any) -> None:
    served = await serve()
    post, get = served.http.post, served.http.get
    missing = await get(f"/v2/models/{MODEL}")
    nowhere = await get("/v2/nowhere")
    for answer, status in ((missing, 404), (nowhere, 404), (await post(INFER, json={"inputs": PAIRS}), 404)):
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert set(answer.json()) == {"error", "code"}
    worker: HandWorker = hand_worker(input=PAIR)
    await served.app.services.watcher.refresh()
    assert (await post(INFER, content=b"{")).status_code == 400
    assert (await post(INFER, headers={"inference-header-content-length": "9"})).status_code == 400
    failed = JobOutcome("failed", error_code="model_failed", error_detail="the model failed on this input")
    answer, _ = await infer(served, worker, failed, json={"inputs": PAIRS})
    assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
    refused = JobOutcome("failed", error_code="input_wrong_type", error_detail="id is no number")
    answer, _ = await infer(served, worker, refused, json={"inputs": PAIRS})
    assert (answer.status_code, answer.json()["code"]) == (400, "input_wrong_type")
    answer, _ = await infer(served, worker, json={"inputs": PAIRS, "outputs": [{"name": "z"}]})
    assert (answer.status_code, answer.json()["code"]) == (400, "parameter_invalid")
    late = await post(f"{INFER}?deadline=0.05", json={"inputs": PAIRS})
    assert (late.status_code, late.json()["code"]) == (504, "job_expired")


async def test_the_outcome_of_a_job_is_an_answer_of_the_protocol_at_its_url(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(
        input=PAIR, outputs=ColumnsContract((Column("price", ColumnType("float")),))
    )
    served = await serve(root_path="/yard")
    get = served.http.get

    async def accepted() -> str:
        later = await served.http.post(
            f"/yard{INFER}", json={"inputs": PAIRS}, headers={"prefer": "respond-async"}
        )
        assert (later.status_code, later.json()["status"]) == (202, "queued")
        url = later.headers["location"]
        assert url == later.json()["result_url"] == f"/yard/v2/results/{later.json()['id']}"
        return str(url)

    done, failed, cancelled = [await accepted() for _ in range(3)]
    waiting = await get(done)
    assert (waiting.status_code, waiting.json()["status"]) == (202, "queued")
    assert (await served.http.delete(cancelled.replace("/v2", ""))).status_code == 200
    for own in (
        JobOutcome("succeeded", [1.5]),
        JobOutcome("failed", error_code="model_failed", error_detail="the model failed"),
    ):
        worker.finish(await worker.claimed(), outcome(1, jobs=[own], schema_version=3))
    answer = (await get(f"{done}?wait=5")).json()
    assert answer["parameters"] == {"job_id": done.rpartition("/")[2]}
    assert answer["outputs"] == [{"name": "price", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]
    for url, status, code in (
        (f"{failed}?wait=5", 500, "model_failed"),
        (cancelled, 409, "job_cancelled"),
        (f"{done}0", 404, "job_unknown"),
        (f"{done}?wait=-1", 400, "parameter_invalid"),
    ):
        refused = await get(url)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert refused.headers["content-type"] == "application/json"
        assert refused.json()["error"]


async def test_a_preferred_wait_before_a_job_is_answered_with_the_outcome_that_came_in_it(
    serve: Serve, hand_worker: Any
) -> None:
    worker: HandWorker = hand_worker(input=PAIR)
    served = await serve()
    prefer = {"prefer": "respond-async, wait=30"}
    answer, _ = await infer(served, worker, json={"inputs": PAIRS}, headers=prefer)
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, ["x"])
    mlflow, _ = await infer(served, worker, path="/invocations", json={"inputs": [[1, 2]]}, headers=prefer)
    assert (mlflow.status_code, mlflow.json()) == (200, {"predictions": ["x"]})


async def test_a_caller_who_waits_at_a_stop_is_told_where_the_outcome_will_be(
    serve: Serve, hand_worker: Any
) -> None:
    hand_worker(input=PAIR)
    served = await serve(drain_s=0.0)
    asked = [(INFER, {"inputs": PAIRS}), ("/invocations", {"inputs": [[1, 2]]})]
    sent = [asyncio.create_task(served.http.post(path, json=body)) for path, body in asked]
    await until(lambda: len(served.services.dispatcher.jobs()) == 2, "both wait")
    served.app.drain()
    for answer, at in zip(await asyncio.gather(*sent), ("/v2/results/", "/results/"), strict=True):
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["retry-after"]
        assert answer.headers["location"].startswith(at)


async def test_the_outputs_of_a_job_repeat_the_id_of_its_request(serve: Serve, hand_worker: Any) -> None:
    worker: HandWorker = hand_worker(input=PAIR)
    served = await serve()
    body = {"id": "a & b", "inputs": PAIRS}
    receipt = await served.http.post(INFER, json=body, headers={"prefer": "respond-async"})
    assert receipt.status_code == 202
    url = receipt.headers["location"]
    assert url == f"{receipt.json()['result_url']}?id=a+%26+b"
    pending = await served.http.get(url)
    assert (pending.status_code, pending.headers["location"]) == (202, url)
    worker.finish(await worker.claimed(), outcome(1, jobs=[JobOutcome("succeeded", [1.5])], schema_version=3))
    assert (await served.http.get(f"{url}&wait=5")).json()["id"] == "a & b"
    assert "id" not in (await served.http.get(receipt.json()["result_url"])).json()
