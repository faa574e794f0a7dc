"""Runs an ONNX model with ONNX Runtime, an optional package; MLflow is not involved.

The worker's settings choose threads and device. The model's named inputs and outputs are what MLflow would pass and
answer: a dictionary of arrays, or a DataFrame for a DataFrame.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.server_errors import ModelRequirementsError

logger = logging.getLogger(__name__)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ERRORS_ONLY = 3  # ONNX Runtime's log level; its warnings are about its own optimisations


def require_runtime(uri: str) -> None:
    """Check that ONNX Runtime is installed, without importing it.

    Raises:
        ModelRequirementsError: It is not.
    """
    if not find_spec("onnxruntime"):
        raise ModelRequirementsError(
            f"{uri} is an ONNX model, which needs ONNX Runtime; it is not installed: run `pip install onnxruntime` "
            "(onnxruntime-gpu for CUDA) in the worker's environment, or set MODELYARD_ENV_MANAGER=uv to serve the "
            "version in an environment of its own"
        )


def has_cuda() -> bool:
    """Whether this build of ONNX Runtime can use CUDA."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


class OnnxModel:
    """A loaded ONNX model.

    Args:
        file: The `.onnx` file; its external data, if any, lies beside it.
        device: `cpu`, `cuda` or `cuda:N`.
        n_threads: Threads of one pass.

    Raises:
        ValueError: ONNX Runtime cannot use the device here.
        Exception: ONNX Runtime's own, if it cannot load the model.
    """

    def __init__(self, file: str, device: str, n_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.log_severity_level = ERRORS_ONLY
        providers: list[Any] = [CPU]
        if device != "cpu" and has_cuda():
            providers.insert(0, (CUDA, {"device_id": device.partition(":")[2] or "0"}))
        self._session = onnxruntime.InferenceSession(file, options, providers)
        if device != "cpu" and CUDA not in self._session.get_providers():  # it falls back to the CPU silently
            raise ValueError(
                f"this ONNX Runtime cannot use {device}; install onnxruntime-gpu and CUDA, or use the CPU"
            )
        inputs = self._session.get_inputs()
        self._names = [each.name for each in inputs]
        self._float32 = {each.name for each in inputs if each.type == "tensor(float)"}
        self._column_names = {each.name for each in inputs if len(each.shape) == 2}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def predict(self, samples: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Run the model.

        Args:
            samples: An array for the only input, a dictionary of arrays, or a DataFrame. Its columns are the inputs if
                there are several; otherwise its values are the input.
            params: Ignored, as by MLflow.
        """
        is_frame = hasattr(samples, "iloc")
        given = self._of_frame(samples) if is_frame else self._by_name(samples)
        answered = self._session.run(self._outputs, {name: self._cast(name, given[name]) for name in given})
        output = dict(zip(self._outputs, answered, strict=True))
        return _as_frame(output, len(samples)) if is_frame else output

    def _of_frame(self, frame: Any) -> Mapping[str, Any]:
        if len(self._names) == 1:
            return {self._names[0]: frame.to_numpy()}
        columns = {name: frame[name].to_numpy() for name in self._names}
        return {
            name: each.reshape(-1, 1) if name in self._column_names else each
            for name, each in columns.items()
        }

    def _by_name(self, samples: Any) -> Mapping[str, Any]:
        given: Mapping[str, Any] = samples if isinstance(samples, Mapping) else {self._names[0]: samples}
        if given.keys() == set(self._names) or len(given) != len(self._names):
            return given  # a wrong number of inputs: ONNX Runtime names the missing ones
        return dict(zip(self._names, given.values(), strict=True))

    def _cast(self, name: str, given: Any) -> Any:
        """MLflow's rule: numbers from JSON are float64, and float32 is what the model takes."""
        if name in self._float32 and given.dtype == np.float64:
            return given.astype(np.float32)
        return given


def _as_frame(output: Mapping[str, Any], n_rows: int) -> Any:
    """A DataFrame of the outputs if each has one value per row, as MLflow answers; otherwise the outputs."""
    if all(_size(each) == n_rows for each in output.values()):
        import pandas as pd

        return pd.DataFrame({name: np.asarray(each).reshape(-1) for name, each in output.items()})
    return output


def _size(output: Any) -> int:
    return (
        output.size if isinstance(output, np.ndarray) else len(output) if isinstance(output, Sequence) else 0
    )
