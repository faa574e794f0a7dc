"""`open-inference-openapi`, the client that is generated from the protocol's own description, as its page shows."""

from __future__ import annotations

import json
import sys

import numpy as np
from open_inference.openapi import InferenceRequest, RequestInput, TensorData
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError

URL, DIGITS, ORDERS, FOLDER = sys.argv[1:]
IMAGES = np.load(f"{FOLDER}/images.npy")
with open(f"{FOLDER}/classes.json") as file:
    CLASSES = json.load(file)

client = OpenInferenceClient(base_url=URL)
client.check_server_liveness()
client.check_server_readiness()
client.check_model_readiness(DIGITS)
client.check_model_version_readiness(DIGITS, "1")
assert client.read_server_metadata().name == "modelyard"
assert client.read_model_version_metadata(DIGITS, "1").inputs[0].shape == [-1, 1, 28, 28]
assert {each.name for each in client.read_model_metadata(ORDERS).outputs} == {"upper", "double"}


def of_images(shape: list[int], data: list[float]) -> InferenceRequest:
    """A request for the model of digits."""
    given = RequestInput(name="input-0", shape=shape, datatype="FP32", data=TensorData(__root__=data))
    return InferenceRequest(id="7", inputs=[given])


request = of_images(list(IMAGES.shape), IMAGES.reshape(-1).tolist())
for answer in (
    client.model_infer(DIGITS, request=request),
    client.model_version_infer(DIGITS, "1", request=request),
):
    (output,) = answer.outputs
    assert (answer.id, answer.model_name, output.shape) == ("7", DIGITS, [len(CLASSES), 10])
scores = np.array(output.data.__root__).reshape(output.shape)
assert scores.argmax(axis=1).tolist() == CLASSES
for model, status in ((DIGITS, 400), ("Nobody", 404)):
    try:
        client.model_infer(model, request=of_images([1, 2], [1.0, 2.0]))
    except ApiError as error:
        assert error.status_code == status
        assert error.body["error"], error.body
    else:
        raise AssertionError("it was not refused")
