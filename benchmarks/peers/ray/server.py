"""Ray Serve: one replica, whose requests are joined by `serve.batch`."""

import os
import signal

import numpy as np
import orjson
import ray
from network import load_network
from ray import serve
from starlette.requests import Request

PYTHONPATH = os.environ["PYTHONPATH"]


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
class Digits:
    """The model in a replica."""

    def __init__(self) -> None:
        self.classify = load_network()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
    async def classify_batch(self, samples: list[np.ndarray]) -> list[int]:
        """Classify a batch."""
        return self.classify(np.concatenate(samples))

    async def __call__(self, request: Request) -> dict[str, int]:
        """Answer one request."""
        samples = np.array(orjson.loads(await request.body())["data"], np.float32)
        return {"prediction": await self.classify_batch(samples)}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=2, log_to_driver=False, logging_level="warning")
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run(Digits.bind(), route_prefix="/predict")
    signal.signal(signal.SIGTERM, lambda *_: ray.shutdown() or os._exit(0))
    signal.pause()
