"""mosec: its Rust front end batches for one worker process."""

from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker
from network import load_network


class Digits(Worker):
    """The model in a worker process."""

    def __init__(self) -> None:
        self.classify = load_network()

    def deserialize(self, data: bytes) -> Any:
        """Read a body, faster than the default's json module does."""
        return np.array(orjson.loads(data)["data"], np.float32)

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return orjson.dumps(data)

    def forward(self, data: list[Any]) -> list[dict[str, int]]:
        """Classify a batch."""
        return [{"prediction": each} for each in self.classify(np.concatenate(data))]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
