"""ONNX models run by ONNX Runtime alone answer what they answer through MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from app.server_errors import ModelRequirementsError, ModelWarmUpError
from app.settings import WorkerSettings
from workers import model
from workers.model_lookup import ModelVersion, read_description

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Save = Callable[..., ModelVersion]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a graph: nodes as (operation, inputs, outputs), tensors as (name, type, shape)."""

    def make(inputs: list[Any], outputs: list[Any], nodes: list[Any], *specs: Any) -> ModelVersion:
        to = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(*each) for each in nodes],
            "graph",
            [to(*each) for each in inputs],
            [to(*each) for each in outputs],
        )
        opset = [onnx.helper.make_opsetid("", 18)]
        path = str(tmp_path / "model")
        mlflow.onnx.save_model(
            onnx.helper.make_model(graph, opset_imports=opset, ir_version=10),
            path,
            signature=ModelSignature(inputs=Schema(list(specs))),
            pip_requirements=["numpy"],
        )
        described = read_description(path)
        return ModelVersion("Graph", 1, "", path, described.flavors, described.signature)

    return make


def doubled(save: Save, *specs: Any) -> ModelVersion:
    """Twice its only input."""
    shape = ["n", "k"]
    return save([("x", FLOAT, shape)], [("y", FLOAT, shape)], [("Add", ["x", "x"], ["y"])], *specs)


def by_mlflow(found: ModelVersion, given: Any) -> Any:
    return mlflow.pyfunc.load_model(found.path).predict(given)


def test_an_unnamed_tensor_is_the_only_input_and_the_output_keeps_its_name(save: Save) -> None:
    found = doubled(save, TensorSpec(np.dtype("float64"), (-1, 2)))
    samples = np.array([[0.5, 1.0], [2.0, 3.0]])
    answer = model.load(found, WorkerSettings()).predict(samples)
    assert answer["y"].dtype == np.float32
    np.testing.assert_array_equal(answer["y"], by_mlflow(found, samples)["y"])


@pytest.mark.parametrize("column_shape", [["n"], ["n", 1]])
def test_columns_are_the_inputs_of_the_same_names_and_the_answer_has_columns(
    save: Save, column_shape: list[Any]
) -> None:
    found = save(
        [("a", FLOAT, column_shape), ("b", FLOAT, column_shape), ("c", INT64, column_shape)],
        [("sum", FLOAT, column_shape), ("same", INT64, column_shape)],
        [("Add", ["a", "b"], ["sum"]), ("Identity", ["c"], ["same"])],
        *(ColSpec("double", "a"), ColSpec("float", "b"), ColSpec("long", "c")),
    )
    frame = pd.DataFrame({"a": [0.5, 1.5], "b": np.array([1, 2], np.float32), "c": [3, 4]})
    loaded = model.load(found, WorkerSettings())
    assert loaded.predict(frame).to_dict("list") == {"sum": [1.5, 3.5], "same": [3, 4]}
    if column_shape == ["n"]:  # MLflow does not reshape columns
        pd.testing.assert_frame_equal(loaded.predict(frame), by_mlflow(found, frame))


def test_a_frame_is_a_single_input_and_an_answer_that_is_no_column_keeps_its_shape(save: Save) -> None:
    found = doubled(save, ColSpec("float", "a"), ColSpec("float", "b"))
    frame = pd.DataFrame({"a": [0.5, 1.5], "b": [1.0, 2.0]}, dtype=np.float32)
    assert model.load(found, WorkerSettings()).predict(frame)["y"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_tensors_with_other_names_than_the_inputs_are_passed_by_position(save: Save) -> None:
    found = doubled(save, TensorSpec(np.dtype("float32"), (-1, 2), "pixels"))
    answer = model.load(found, WorkerSettings()).predict({"pixels": np.ones((1, 2), np.float32)})
    assert answer["y"].tolist() == [[2.0, 2.0]]


def test_a_device_that_is_not_there_is_named(save: Save) -> None:
    found = doubled(save, TensorSpec(np.dtype("float32"), (-1, 2)))
    with pytest.raises(ModelWarmUpError, match=r"on cuda:1: .*install onnxruntime-gpu"):
        model.load(found, WorkerSettings(device="cuda:1"))


def test_without_onnx_runtime_the_error_says_what_to_install(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doubled(save, TensorSpec(np.dtype("float32"), (-1, 2)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelRequirementsError, match="pip install onnxruntime"):
        model.load(found, WorkerSettings())
