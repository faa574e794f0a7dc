"""Builds all services of a controller, from the ledger up to the prediction handler.

Building connects to nothing; the lifespan in `main` opens the services.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from app.celery_app import create_celery
from app.clock import PoolClock
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.quarantine import Quarantine
from app.ledger.replay import Replay
from app.ledger.wakeup_message import write_template
from app.redis import keys
from app.redis.client import AsyncClient
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
from controller.http.prediction_request import KnownHeads
from controller.http.replies import Refusals
from controller.input.large_bodies import LargeBodies
from controller.metrics import Metrics
from controller.page.feed import Feed
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
        known_heads: Heads of predictions that connections answer directly; None if every request goes through ASGI.
    """

    settings: ControllerSettings
    clock: PoolClock
    access: Access
    gate: Gate
    ledger: ControllerLedger
    watcher: PoolWatcher
    dispatcher: Dispatcher
    replay_buffer: ReplayBuffer
    results: Results
    metrics: Metrics
    refusals: Refusals
    predict: Predict
    known_heads: KnownHeads | None
    quarantine: Quarantine
    drain: Drain
    link: RedisLink
    large_bodies: LargeBodies
    audit: Audit
    reconciler: Reconciler
    losses: LossWatch
    feed: Feed


def build_services(
    settings: ControllerSettings, access: Access, audit: Audit, client: AsyncClient
) -> Services:
    """Build all services.

    Args:
        client: Asynchronous Redis client that returns bytes.
    """
    drain = Drain()
    pool = _build_pool(settings, client, drain)
    rate_limit = RateLimit(settings.rate_limit, client) if settings.rate_limit else None
    gate = Gate(settings, access, drain, rate_limit)
    refusals, large_bodies = Refusals(pool.metrics, audit), LargeBodies()
    parts = Collaborators(
        gate=gate,
        rate_limit=rate_limit,
        watcher=pool.watcher,
        backlogs=pool.backlogs,
        dispatcher=pool.dispatcher,
        results=pool.results,
        idempotency=Idempotency(client, settings),
        large_bodies=large_bodies,
        refusals=refusals,
        clock=pool.clock,
        drain=drain,
    )
    predict = Predict(settings, parts)
    is_fast = settings.fast_http and rate_limit is None  # the rate limit must ask Redis
    return Services(
        settings=settings,
        clock=pool.clock,
        access=access,
        gate=gate,
        ledger=pool.ledger,
        watcher=pool.watcher,
        dispatcher=pool.dispatcher,
        replay_buffer=pool.replay_buffer,
        results=pool.results,
        metrics=pool.metrics,
        refusals=refusals,
        predict=predict,
        known_heads=KnownHeads(settings, gate) if is_fast else None,
        quarantine=pool.quarantine,
        drain=drain,
        link=pool.link,
        large_bodies=large_bodies,
        audit=audit,
        reconciler=pool.reconciler,
        losses=pool.losses,
        feed=Feed(client, pool.watcher, pool.clock, settings.heartbeat_s),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """The services of ledger and workers, which do not depend on requests."""

    clock: PoolClock
    ledger: ControllerLedger
    backlogs: Backlogs
    replay_buffer: ReplayBuffer
    watcher: PoolWatcher
    metrics: Metrics
    link: RedisLink
    dispatcher: Dispatcher
    results: Results
    reconciler: Reconciler
    quarantine: Quarantine
    losses: LossWatch


def _build_pool(settings: ControllerSettings, client: AsyncClient, drain: Drain) -> _Pool:
    controller_id, clock, unreadable = uuid4().hex, PoolClock(), Unreadable()
    ledger = ControllerLedger(client, settings.result_retention_s)
    backlogs = Backlogs(settings)
    replay_buffer = ReplayBuffer(Replay(client), clock, settings.result_retention_s)
    watcher = PoolWatcher(client, clock, backlogs, replay_buffer, settings, unreadable)
    metrics = Metrics(watcher, clock, unreadable)
    link = RedisLink(client, settings.redis_timeout_s)
    template = write_template(create_celery(settings))
    dispatcher = Dispatcher(
        controller_id,
        settings,
        link,
        template,
        backlogs,
        watcher,
        on_accepted=[replay_buffer.accepted, metrics.accepted],
        on_completed=[backlogs.completed, replay_buffer.completed, metrics.completed],
    )
    results = Results(
        client,
        ledger,
        dispatcher=dispatcher,
        replay_buffer=replay_buffer,
        watcher=watcher,
        clock=clock,
        unreadable=unreadable,
        drain=drain,
    )
    link.listen(keys.reply_channel(controller_id), results.hear)
    link.listen(keys.POOL_CHANNEL, watcher.hear)
    return _Pool(
        clock=clock,
        ledger=ledger,
        backlogs=backlogs,
        replay_buffer=replay_buffer,
        watcher=watcher,
        metrics=metrics,
        link=link,
        dispatcher=dispatcher,
        results=results,
        reconciler=Reconciler(
            controller_id, client, ledger, template, watcher, unreadable, interval_s=settings.heartbeat_s
        ),
        quarantine=Quarantine(client, template, settings.result_retention_s),
        losses=LossWatch(client, settings.heartbeat_s, settings.result_retention_s, metrics.ledger_lost),
    )
