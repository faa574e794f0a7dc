"""LitServe: batches from its API process to two worker processes."""

import os
from typing import Any

import litserve
import numpy as np
from network import load_network


class Digits(litserve.LitAPI):
    """The model in a worker process."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.classify = load_network()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Read a body."""
        return np.array(request["data"], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        """Make a batch of samples."""
        return np.concatenate(inputs)

    def predict(self, inputs: Any) -> list[int]:
        """Classify a batch."""
        return self.classify(inputs)

    def unbatch(self, output: list[int]) -> list[int]:
        """Split a batch's answers."""
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        """Write an answer."""
        return {"prediction": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Digits(max_batch_size=64, batch_timeout=0.005),
        accelerator="cpu",
        workers_per_device=2,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
