"""Ray Serve: one replica, whose requests are joined by `serve.batch`."""

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from workload import load_model

PYTHONPATH = os.environ["PYTHONPATH"]
SIZE = 64 if os.environ["BENCH_WORKLOAD"] != "image" else 16


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
class Model:
    """The model in a replica."""

    def __init__(self) -> None:
        self.model = load_model()

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=0.005)
    async def run_batch(self, inputs: list[Any]) -> list[Any]:
        """Answer a batch."""
        return self.model.run(inputs)

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        return await self.run_batch(self.model.read(await request.body()))


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=2, log_to_driver=False, logging_level="warning")
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run(Model.bind(), route_prefix="/predict")
    signal.signal(signal.SIGTERM, lambda *_: ray.shutdown() or os._exit(0))
    signal.pause()
