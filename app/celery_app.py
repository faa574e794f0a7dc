"""The Celery application that workers, controllers and Flower share."""

from __future__ import annotations

import logging
from typing import Any

import click
from celery import Celery, bootsteps

from app.redis import keys
from app.redis import url as redis_url
from app.redis.credentials import PasswordFile
from app.redis.sentinel import TIMEOUT_S
from app.settings import Settings, load

logger = logging.getLogger(__name__)
BATCH_TASK = "modelyard.run_batch"
WRONG_WORKER = (
    "a plain Celery worker cannot run batches and would discard the messages of its queues; start "
    "`modelyard worker` with MODEL_NAME and MODEL_VERSION instead"
)
_credentials: PasswordFile | None = (
    None  # a global variable, because kombu takes a name and passes no argument
)


def create_celery(settings: Settings) -> Celery:
    """Create the Celery application. Nothing connects."""
    global _credentials
    broker, sentinels = settings.celery_broker_url, redis_url.sentinels(settings.effective_redis_url)
    _credentials = PasswordFile(settings) if settings.redis_password_file else None
    if _credentials:
        provider = f"credential_provider={__name__}.{redis_credentials.__name__}"
        broker = ";".join(f"{url}{'&' if '?' in url else '?'}{provider}" for url in broker.split(";"))
    celery = Celery("modelyard", broker=broker, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        broker_channel_error_retry=True,  # no error of Redis ends a worker; a stalled worker ends itself
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            # A half-open connection is detected by a missing answer, not after minutes.
            "health_check_interval": 1,
            "priority_steps": [0],
            "socket_connect_timeout": settings.redis_timeout_s,
            "socket_keepalive": not settings.celery_broker_url.startswith("redis+socket"),
            "socket_timeout": settings.redis_timeout_s,
            "unacked_key": keys.UNACKED,
            "unacked_index_key": f"{keys.UNACKED}_index",
            "unacked_mutex_key": f"{keys.UNACKED}_mutex",
            **(_sentinel_options(sentinels) if sentinels else {}),
        },
        broker_use_ssl=settings.celery_tls or None,
        enable_utc=True,
        task_default_delivery_mode="transient",
        task_ignore_result=True,
        task_serializer="json",
        worker_cancel_long_running_tasks_on_connection_loss=True,  # none exist; without it Celery warns
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
    )
    celery.steps["worker"].add(KnowsItsTask)
    # A hidden option whose callback runs for every `celery worker`, even if the option is not given. It runs before the
    # process detaches, so that `celery multi` and `--detach` report the failure, too.
    celery.user_options["worker"].add(
        click.Option(
            ["--refused"], hidden=True, expose_value=False, is_flag=True, callback=_refuse_celery_worker
        )
    )
    return celery


def _sentinel_options(sentinels: redis_url.Sentinels) -> dict[str, Any]:
    """Kombu's transport options; workers have a transport of their own, Flower and Celery's commands have kombu's."""
    timeouts = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    return {"master_name": sentinels.name, "sentinel_kwargs": dict(sentinels.options) | timeouts}


class KnowsItsTask(bootsteps.Step):  # type: ignore[misc]
    """Ends a Celery worker without the batch task before it connects: it would discard all messages of its queues.

    `modelyard worker` registers the task; a plain `celery worker` of this application does not.
    """

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        if BATCH_TASK not in worker.app.tasks:
            logger.critical(WRONG_WORKER)
            raise SystemExit(1)


def _refuse_celery_worker(*_: Any) -> None:
    raise SystemExit(WRONG_WORKER)


def redis_credentials() -> PasswordFile | None:
    """The credentials of kombu's connections; kombu finds this function by its name in the broker URL."""
    return _credentials


def __getattr__(name: str) -> Celery:
    """`app.celery_app:celery_app`, for Celery's own command line, created from the environment on first use."""
    if name not in ("celery_app", "app"):
        raise AttributeError(name)
    globals()["celery_app"] = globals()["app"] = create_celery(load(Settings))
    made: Celery = globals()["celery_app"]
    return made
