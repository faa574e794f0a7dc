"""Everything that lives as long as a controller serves: built here, from the ledger up to the handler of predictions.

What is built here connects to nothing; the lifespan in `main` opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import redis.asyncio

from app.celery_app import create_celery, message_template
from app.clock import PoolClock
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.quarantine import Quarantine
from app.ledger.replay import Replay
from app.redis import keys
from app.redis.link import RedisLink
from app.settings import ControllerSettings
from app.unreadable import Unreadable
from controller.admission.audit_log import Audit
from controller.admission.authentication import Access
from controller.admission.gate import Gate
from controller.admission.idempotency import Idempotency
from controller.admission.rate_limit import RateLimit
from controller.admission.wait_estimate import Backlogs
from controller.dispatch import Dispatcher
from controller.http.draining import Drain
from controller.http.fast_path import FastPath
from controller.http.replies import Refusals
from controller.input.large_bodies import LargeBodies
from controller.metrics import Metrics
from controller.pool_watcher import PoolWatcher
from controller.predict import Collaborators, Predict
from controller.recovery.data_loss import LossWatch
from controller.recovery.reconciler import Reconciler
from controller.recovery.replay_buffer import ReplayBuffer
from controller.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The typed state of the lifespan.

    Attributes:
        fast_path: The short way of predictions; None where every request is to go through ASGI.
    """

    settings: ControllerSettings
    clock: PoolClock
    access: Access
    gate: Gate
    ledger: ControllerLedger
    watcher: PoolWatcher
    dispatcher: Dispatcher
    recent: ReplayBuffer
    results: Results
    metrics: Metrics
    refusals: Refusals
    predict: Predict
    fast_path: FastPath | None
    quarantine: Quarantine
    drain: Drain
    link: RedisLink
    large_bodies: LargeBodies
    audit: Audit
    reconciler: Reconciler
    losses: LossWatch


def build_services(
    settings: ControllerSettings, access: Access, audit: Audit, client: redis.asyncio.Redis
) -> Services:
    """Build everything.

    Args:
        client: Asynchronous Redis client that answers bytes.
    """
    controller_id, clock = uuid4().hex, PoolClock()
    ledger = ControllerLedger(client, settings.result_retention_s)
    backlogs = Backlogs(settings, lambda queue: dispatcher.open_jobs(queue))
    unreadable, drain = Unreadable(), Drain()
    recent = ReplayBuffer(Replay(client), clock, settings.result_retention_s)
    watcher = PoolWatcher(
        client, clock, backlogs, recent, settings.heartbeat_s, settings.worker_ttl_s, unreadable
    )
    metrics = Metrics(watcher, clock, unreadable)
    channels = [keys.reply_channel(controller_id), keys.POOL_CHANNEL]
    link = RedisLink(
        client, channels, lambda channel, data: results.hear(channel, data), settings.redis_timeout_s
    )
    template = message_template(create_celery(settings))
    dispatcher = Dispatcher(
        controller_id,
        link,
        template,
        clock,
        settings,
        backlogs,
        recent,
        lambda: watcher.signer,
        metrics.sent,
        metrics.settled,
    )
    results = Results(
        controller_id,
        client,
        ledger,
        dispatcher=dispatcher,
        recent=recent,
        watcher=watcher,
        clock=clock,
        unreadable=unreadable,
        drain=drain,
    )
    rate_limit = RateLimit(settings.rate_limit, client) if settings.rate_limit else None
    gate = Gate(settings, access, drain, rate_limit)
    refusals, large_bodies = Refusals(metrics, audit), LargeBodies()
    predict = Predict(
        settings,
        Collaborators(
            gate=gate,
            rate_limit=rate_limit,
            watcher=watcher,
            backlogs=backlogs,
            dispatcher=dispatcher,
            results=results,
            idempotency=Idempotency(client, settings),
            large_bodies=large_bodies,
            refusals=refusals,
            clock=clock,
            drain=drain,
        ),
    )
    paths = frozenset(
        (prefix + path).encode() for prefix in ("", settings.prefix) for path in ("/predict", "/predict/")
    )
    is_fast = settings.fast_http and rate_limit is None  # which has to ask Redis
    return Services(
        settings=settings,
        clock=clock,
        access=access,
        gate=gate,
        ledger=ledger,
        watcher=watcher,
        dispatcher=dispatcher,
        recent=recent,
        results=results,
        metrics=metrics,
        refusals=refusals,
        predict=predict,
        fast_path=FastPath(settings, gate, predict, paths) if is_fast else None,
        quarantine=Quarantine(client, template, settings.result_retention_s),
        drain=drain,
        link=link,
        large_bodies=large_bodies,
        audit=audit,
        reconciler=Reconciler(
            controller_id, client, ledger, dispatcher, clock, settings.heartbeat_s, unreadable
        ),
        losses=LossWatch(client, settings.heartbeat_s, settings.result_retention_s, metrics.ledger_lost),
    )
