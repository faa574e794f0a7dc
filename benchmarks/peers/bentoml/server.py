"""BentoML: two workers, whose adaptive batching joins requests."""

import bentoml
import numpy as np
from network import load_network


@bentoml.service(workers=2, traffic={"timeout": 30, "max_concurrency": 1024}, metrics={"enabled": False})
class Digits:
    """The model."""

    def __init__(self) -> None:
        self.classify = load_network()

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, data: np.ndarray) -> list[int]:
        """Classify a batch."""
        return self.classify(np.ascontiguousarray(data, np.float32))
