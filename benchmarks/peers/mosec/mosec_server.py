"""mosec: its Rust front end batches for worker processes."""

import json
import os
from typing import Any

import orjson
from mosec import Server, Worker
from workload import load_model


class Model(Worker):
    """The model in a worker process; bodies are bytes, decoded in this process."""

    def __init__(self) -> None:
        self.model = load_model()

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return self.model.read(data)

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return orjson.dumps(data)

    def forward(self, data: list[Any]) -> list[dict[str, Any]]:
        """Answer a batch."""
        return self.model.run(data)


class PlainModel(Model):
    """The same with mosec's own JSON decoder, which is the standard library's."""

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return self.model.take(json.loads(data))

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    worker = PlainModel if os.environ["BENCH_CODEC"] == "json" else Model
    size = 64 if os.environ["BENCH_WORKLOAD"] != "image" else 16
    server.append_worker(worker, num=int(os.environ["BENCH_WORKERS"]), max_batch_size=size, max_wait_time=1)
    server.run()
