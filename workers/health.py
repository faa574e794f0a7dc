"""`python -m workers.health`: whether a worker on this host is ready, by its own record in Redis.

For a container's health check, so it starts neither Celery nor MLflow: it costs a fraction of a second.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import redis

from app import keys
from app.errors import ModelyardError, ServiceError
from app.pool import WorkerRecord, decode_record
from app.settings import Settings, load

TIMEOUT_S = 2.0


def check(settings: Settings) -> str:
    """Find the record of a worker that is ready on this host, and say in a line what it serves.

    Raises:
        ServiceError: There is none; the detail says what there is instead.
    """
    host = socket.gethostname()
    try:
        with redis.Redis.from_url(
            settings.effective_redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            records = records_of_host(client, host)
    except (redis.RedisError, OSError) as error:
        raise ServiceError(f"Redis does not answer ({error}); check REDIS_URL") from None
    for record in records:
        if record.state == "ready":
            return f"worker {record.worker} serves {record.model_name} / {record.model_version}"
    states = ", ".join(record.state for record in records) or "no record of one"
    raise ServiceError(f"no worker is ready on {host}: {states}")


def records_of_host(client: redis.Redis, host: str) -> list[WorkerRecord]:
    """Records of the live workers of a host. A dead worker's has expired."""
    worker_ids: Any = client.zrange(keys.WORKERS, 0, -1)
    own = [keys.worker(each.decode()) for each in worker_ids if each.startswith(f"{host}-".encode())]
    found: Any = client.mget(own) if own else []
    records = [decode_record(data) for data in found if data]
    return [record for record in records if record.host == host]


if __name__ == "__main__":
    try:
        print(check(load(Settings)))
    except ModelyardError as error:
        sys.exit(error.detail)
