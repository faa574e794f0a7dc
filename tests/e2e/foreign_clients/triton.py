"""`tritonclient.http`, blocking and with asyncio, as its documentation shows.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/client_guide/python.html
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as blocking
import tritonclient.http.aio as with_asyncio
from tritonclient.utils import InferenceServerException

HOST, DIGITS, ORDERS, FOLDER = sys.argv[1].removeprefix("http://"), *sys.argv[2:]
IMAGES = np.load(f"{FOLDER}/images.npy")
with open(f"{FOLDER}/classes.json") as file:
    CLASSES = json.load(file)
TEXTS = np.array(["ä", "", "a long text " * 9], dtype=object).reshape(3, 1)
COUNTS = np.array([[1], [2], [2**60]], np.int64)


MANY = 40  # times the digits: an answer that is worth packing


def digits(is_binary: bool = True, times: int = 1) -> list[Any]:
    """Inputs of the model of digits."""
    given = np.tile(IMAGES, (times, 1, 1, 1))
    images = blocking.InferInput("input-0", given.shape, "FP32")
    images.set_data_from_numpy(given, binary_data=is_binary)
    return [images]


def orders(is_binary: bool) -> list[Any]:
    """Inputs of the model with columns."""
    texts = blocking.InferInput("text", TEXTS.shape, "BYTES")
    texts.set_data_from_numpy(TEXTS, binary_data=is_binary)
    counts = blocking.InferInput("n", COUNTS.shape, "INT64")
    counts.set_data_from_numpy(COUNTS, binary_data=is_binary)
    return [texts, counts]


def check_digits(result: Any, times: int = 1) -> None:
    """The digits' classes are those that /predict answers."""
    scores = result.as_numpy("output-0")
    assert scores.shape == (times * len(CLASSES), 10), scores.shape
    assert scores.argmax(axis=1).tolist() == times * CLASSES


def check_orders(result: Any) -> None:
    """The columns of the answer."""
    found = [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy("upper").flat]
    assert found == [each.upper() for each in TEXTS.flat], found
    assert result.as_numpy("double").tolist() == [[2], [4], [2**61]]


def run_blocking() -> None:
    """Every call that an application makes."""
    with blocking.InferenceServerClient(HOST, concurrency=2) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(DIGITS)
        assert client.is_model_ready(DIGITS, "1")
        assert not client.is_model_ready("Nobody")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata(DIGITS, "1")
        assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
        config = client.get_model_config(DIGITS, "1")
        assert config["max_batch_size"] > 0
        assert config["input"] == [{"name": "input-0", "data_type": "TYPE_FP32", "dims": [1, 28, 28]}]
        index = client.get_model_repository_index()
        assert {(each["name"], each["version"]) for each in index} >= {(DIGITS, "1"), (ORDERS, "1")}
        for coding in (None, "gzip", "deflate"):
            result = client.infer(
                DIGITS,
                digits(times=MANY),
                "1",
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
                request_id="7",
            )
            check_digits(result, MANY)
            answer = result.get_response()
            assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", DIGITS, "1")
        for is_binary in (True, False):
            outputs = [blocking.InferRequestedOutput("output-0", binary_data=is_binary)]
            check_digits(client.infer(DIGITS, digits(is_binary), "1", outputs))
            check_orders(client.infer(ORDERS, orders(is_binary)))
            outputs = [blocking.InferRequestedOutput(each, is_binary) for each in ("upper", "double")]
            check_orders(client.infer(ORDERS, orders(is_binary), outputs=outputs))
        result = client.infer(ORDERS, orders(True), parameters={"factor": 3}, priority=1, timeout=10_000)
        assert result.as_numpy("double").tolist() == [[3], [6], [3 * 2**60]]
        later = [client.async_infer(DIGITS, digits(), "1") for _ in range(8)]
        for each in later:
            check_digits(each.get_result())
        wrong = blocking.InferInput("input-0", [1, 2], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
        for model, inputs, status, text in (
            (DIGITS, [wrong], "400", "shape"),
            ("Nobody", digits(), "404", "known models"),
        ):
            try:
                client.infer(model, inputs)
            except InferenceServerException as error:
                assert error.status() == status, error.status()
                assert text in error.message(), error.message()
            else:
                raise AssertionError("it was not refused")


async def run_with_asyncio() -> None:
    """The same with asyncio."""
    async with with_asyncio.InferenceServerClient(HOST) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(ORDERS)
        assert (await client.get_model_metadata(ORDERS))["versions"] == ["1"]
        assert (await client.get_model_config(ORDERS))["input"][0]["data_type"] == "TYPE_STRING"
        results = await asyncio.gather(
            *(client.infer(DIGITS, digits(each % 2 == 0), "1") for each in range(8))
        )
        for each in results:
            check_digits(each)
        zipped = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
        check_digits(await client.infer(DIGITS, digits(times=MANY), "1", **zipped), MANY)
        check_orders(await client.infer(ORDERS, orders(True), **zipped))
        check_orders(await client.infer(ORDERS, orders(False)))


run_blocking()
asyncio.run(run_with_asyncio())
