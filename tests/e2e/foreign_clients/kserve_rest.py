"""The REST client of the `kserve` package, as its documentation shows.

https://kserve.github.io/website/docs/reference/inference-client
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

URL, DIGITS, ORDERS, FOLDER = sys.argv[1:]
IMAGES = np.load(f"{FOLDER}/images.npy")
with open(f"{FOLDER}/classes.json") as file:
    CLASSES = json.load(file)


def digits(is_binary: bool) -> InferRequest:
    """A request for the model of digits, whose answer has tensors in the same form."""
    images = InferInput("input-0", list(IMAGES.shape), "FP32")
    images.set_data_from_numpy(IMAGES, binary_data=is_binary)
    wanted = [RequestedOutput("output-0", {"binary_data": is_binary})]
    return InferRequest(DIGITS, [images], request_id="7", request_outputs=wanted)


def check_digits(answer: Any) -> None:
    """The digits' classes are those that /predict answers."""
    scores = answer.outputs[0].as_numpy()
    assert scores.shape == (len(CLASSES), 10), scores.shape
    assert scores.argmax(axis=1).tolist() == CLASSES


async def main() -> None:
    """Every call that an application makes."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        assert await client.is_server_live(URL) is True
        assert await client.is_server_ready(URL) is True
        assert await client.is_model_ready(URL, DIGITS)
        assert not await client.is_model_ready(URL, "Nobody")
        for is_binary in (True, False):
            answer = await client.infer(URL, digits(is_binary), model_name=DIGITS)
            check_digits(answer)
            assert (answer.id, answer.model_name) == ("7", DIGITS)
        texts = InferInput("text", [2, 1], "BYTES", data=["ä", ""])
        counts = InferInput("n", [2, 1], "INT64", data=[1, 2])
        request = InferRequest(ORDERS, [texts, counts], parameters={"factor": 3})
        answer = await client.infer(URL, request, model_name=ORDERS)
        outputs = {each.name: each.data for each in answer.outputs}
        assert outputs == {"upper": ["Ä", ""], "double": [3, 6]}, outputs
        plain = {"inputs": [{"name": "input-0", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
        try:
            await client.infer(URL, plain, model_name=DIGITS)
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == 400
            assert "shape" in str(error), error
        else:
            raise AssertionError("it was not refused")


asyncio.run(main())
