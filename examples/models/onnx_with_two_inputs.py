"""An ONNX model with two named inputs, two named outputs and free dimensions, run by ONNX Runtime."""

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper
from show import show

NAME = "Onnx"
BODY = {
    "inputs": {
        "words": [[1.0, 2.0, 4.0], [3.0, 4.0, 8.0]],
        "mask": [[True, True, False], [True, False, True]],
    }
}

inputs = [
    helper.make_tensor_value_info("words", TensorProto.FLOAT, ["n", "length"]),
    helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", "length"]),
]
outputs = [
    helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["n", "length"]),
    helper.make_tensor_value_info("largest", TensorProto.INT64, ["n"]),
]
nodes = [
    helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
    helper.make_node("Mul", ["words", "weights"], ["kept"]),
    helper.make_node("ArgMax", ["kept"], ["largest"], axis=1, keepdims=0),
]
graph = helper.make_graph(nodes, "masked", inputs, outputs)
words, mask = (
    TensorSpec(np.dtype("float32"), (-1, -1), "words"),
    TensorSpec(np.dtype("bool"), (-1, -1), "mask"),
)
mlflow.onnx.log_model(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
    name="model",
    signature=ModelSignature(inputs=Schema([words, mask])),
    pip_requirements=["onnxruntime"],
    registered_model_name=NAME,
)
show(NAME, BODY)
