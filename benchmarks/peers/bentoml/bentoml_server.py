"""BentoML: workers whose adaptive batching joins requests."""

import os
from typing import Any

import bentoml
import numpy as np
from workload import load_model

IS_PERCEPTRON = os.environ["BENCH_WORKLOAD"] == "perceptron"
SERVICE: dict[str, Any] = {
    "workers": int(os.environ["BENCH_WORKERS"]),
    "traffic": {"timeout": 30, "max_concurrency": 1024},
    "metrics": {"enabled": False},
}

if IS_PERCEPTRON:

    @bentoml.service(**SERVICE)
    class Model:
        """The perceptron: its input is an array."""

        def __init__(self) -> None:
            self.model = load_model()

        @bentoml.api(batchable=True, max_batch_size=64)
        def predict(self, data: np.ndarray) -> list[int]:
            """Classify a batch."""
            answers = self.model.run([np.ascontiguousarray(data, np.float32)])
            return [each["prediction"] for each in answers]

else:

    @bentoml.service(**SERVICE)
    class Model:
        """The other models: their input is a list of rows, sentences or images in base64."""

        def __init__(self) -> None:
            self.model = load_model()

        @bentoml.api(batchable=True, max_batch_size=1024, max_latency_ms=5000)
        def predict(self, data: list[Any]) -> list[Any]:
            """Answer a batch."""
            inputs = [self.model.take({"data": [each]}) for each in data]
            return [each["predictions"][0] for each in self.model.run(inputs)]
