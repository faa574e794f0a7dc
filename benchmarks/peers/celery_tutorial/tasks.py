"""The Celery side: one task a request."""

import os

import numpy as np
from celery import Celery
from celery.signals import worker_process_init

app = Celery("tasks", broker=os.environ["BENCH_REDIS"] + "/0", backend=os.environ["BENCH_REDIS"] + "/1")
app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
network = {}


@worker_process_init.connect
def load(**_: object) -> None:
    """Load the model in each worker process."""
    from network import load_network

    network["classify"] = load_network()


@app.task
def predict(data: list) -> int:
    """Classify one sample."""
    return network["classify"](np.array(data, np.float32))[0]
