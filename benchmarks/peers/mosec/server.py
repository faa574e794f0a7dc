"""mosec: its Rust front end batches for two worker processes."""

import os
from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker
from network import load_network


class Digits(Worker):
    """The model in a worker process."""

    def __init__(self) -> None:
        self.classify = load_network()

    def forward(self, data: list[Any]) -> list[dict[str, int]]:
        """Classify a batch."""
        samples = [np.array(each["data"], np.float32) for each in data]
        return [{"prediction": each} for each in self.classify(np.concatenate(samples))]


class QuickDigits(Digits):
    """The same with another JSON decoder than mosec's, which is the standard library's."""

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return orjson.dumps(data)


if __name__ == "__main__":
    server = Server()
    worker = QuickDigits if os.environ["BENCH_CODEC"] == "orjson" else Digits
    server.append_worker(worker, num=2, max_batch_size=64, max_wait_time=1)
    server.run()
