"""The Celery side: one task a request."""

import os

from celery import Celery
from celery.signals import worker_process_init

app = Celery("tasks", broker=os.environ["BENCH_REDIS"] + "/0", backend=os.environ["BENCH_REDIS"] + "/1")
app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
loaded = {}


@worker_process_init.connect
def load(**_: object) -> None:
    """Load the model in each worker process."""
    from workload import load_model

    loaded["model"] = load_model()


@app.task
def predict(data: list) -> dict:
    """Answer one request."""
    model = loaded["model"]
    return model.run([model.take({"data": data})])[0]
