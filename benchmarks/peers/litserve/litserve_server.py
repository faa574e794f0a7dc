"""LitServe: batches from its API process to worker processes."""

import os
from typing import Any

import litserve
from workload import load_model


class Model(litserve.LitAPI):
    """The model in a worker process."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = load_model()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Read a body."""
        return self.model.take(request)

    def batch(self, inputs: list[Any]) -> Any:
        """Make a batch."""
        return inputs

    def predict(self, inputs: Any) -> list[Any]:
        """Answer a batch."""
        return self.model.run(inputs)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Split a batch's answers."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Write an answer."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Model(max_batch_size=64, batch_timeout=0.005),
        accelerator="cpu",
        workers_per_device=int(os.environ["BENCH_WORKERS"]),
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
