"""Builds all services of a controller, from the ledger up to the prediction handler.

Building connects to nothing; the lifespan in `main` opens the services.
"""

from __future__ import annotations

from uuid import uuid4

from app.celery_app import create_celery
from app.clock import PoolClock
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.quarantine import Quarantine
from app.ledger.replay import Replay
from app.ledger.wakeup_message import write_template
from app.redis import keys
from app.redis.client import AsyncClient
from app.redis.key_watch import KeyWatch
from app.redis.link import RedisLink
from app.redis.url import sentinels
from app.settings import ControllerSettings
from app.unreadable import Unreadable
from controller.admission.audit_log import Audit
from controller.admission.authentication import ANONYMOUS, Access
from controller.admission.gate import Gate
from controller.admission.idempotency import Idempotency
from controller.admission.rate_limit import RateLimit
from controller.admission.wait_estimate import Backlogs
from controller.batch_files.batch_files import open_batches
from controller.configured_endpoints import ConfiguredEndpoints
from controller.dispatch import Dispatcher
from controller.http.draining import Drain
from controller.http.prediction_request import Asked, KnownHeads
from controller.http.replies import Refusals
from controller.input import bodies
from controller.input.large_bodies import PROCESSES, LargeBodies
from controller.jobs import BatchWriter
from controller.metrics import Metrics
from controller.operate.circuits import Circuits
from controller.operate.controls import Controls
from controller.operate.decision_log import DecisionLog
from controller.operate.job_history import JobHistory
from controller.operate.registry_webhook import RegistryWebhook, secret_of
from controller.operate.reroute import Reroute
from controller.operate.routing_changes import RoutingChanges
from controller.page.feed import Feed
from controller.pool_watcher import PoolWatcher
from controller.predict import Predict, Request
from controller.recovery.data_loss import LossWatch
from controller.recovery.reconciler import Reconciler
from controller.recovery.replay_buffer import ReplayBuffer
from controller.request_traces import open_traces
from controller.results import Results
from controller.selector import Selector
from controller.webhooks.delivery import Webhooks

EXAMPLE_WAIT_S = 20.0


class Operations:
    """The services for operators.

    Args:
        client: Asynchronous Redis client that returns bytes.
        template: Message template of `app.ledger.wakeup_message.write_template`.
    """

    def __init__(
        self, settings: ControllerSettings, client: AsyncClient, clock: PoolClock, template: bytes
    ) -> None:
        self.decisions = DecisionLog(client)
        self.controls = Controls(client, self.decisions)
        self.routing_changes = RoutingChanges(self.decisions, clock, settings.heartbeat_s)
        self.reroute = Reroute(client, template)
        self.circuits = Circuits(settings, clock, self.decisions)
        self.registry_webhook = RegistryWebhook(secret_of(settings), client)
        self.job_history = JobHistory(client, clock, settings.result_retention_s)


class Services:
    """All services of a controller; the typed state of its lifespan.

    Args:
        client: Asynchronous Redis client that returns bytes.

    Attributes:
        known_heads: Heads of predictions that connections answer directly; None if every request goes through ASGI.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        access: Access,
        audit: Audit,
        client: AsyncClient,
        endpoints: ConfiguredEndpoints,
    ) -> None:
        controller_id, unreadable = uuid4().hex, Unreadable()
        retention_s, timeout_s = settings.result_retention_s, settings.redis_timeout_s
        template, backlogs = write_template(create_celery(settings)), Backlogs(settings)
        rate_limit = RateLimit(settings.rate_limit, client) if settings.rate_limit else None
        self.settings, self.access, self.audit, self.client = settings, access, audit, client
        self.endpoints = endpoints
        self.clock, self.drain = PoolClock(), Drain()
        self.large_bodies = LargeBodies(n_processes=settings.reader_processes or PROCESSES)
        self.batch_files = open_batches(settings, access)
        self.gate = Gate(settings, access, self.drain, rate_limit)
        self.ledger = ControllerLedger(client, retention_s)
        self.quarantine = Quarantine(client, template, retention_s)
        self.replay_buffer = _replay_buffer(settings, client, self.clock)
        self.operate = Operations(settings, client, self.clock, template)
        self.watcher = PoolWatcher(
            client,
            self.clock,
            backlogs,
            self.replay_buffer,
            settings,
            unreadable=unreadable,
            circuits=self.operate.circuits,
            endpoints=endpoints,
        )
        self.link, self.key_watch = RedisLink(client, timeout_s), KeyWatch(client, timeout_s)
        self.metrics = Metrics(self.watcher, self.clock, unreadable, self.key_watch, settings.scale_wait_s)
        if self.batch_files:
            self.metrics.add_batch_files(self.batch_files.figures)
        self.refusals = Refusals(self.metrics, audit, _limits(settings))
        self.traces = open_traces(settings, self.clock)
        self.webhooks = self._webhooks()
        self.dispatcher = self._dispatcher(controller_id, template, backlogs)
        self.results = Results(
            client,
            self.ledger,
            dispatcher=self.dispatcher,
            replayable=self.replay_buffer,
            watcher=self.watcher,
            key_watch=self.key_watch,
            clock=self.clock,
            unreadable=unreadable,
            drain=self.drain,
        )
        self._listen(controller_id)
        self.predict = self._predict(client, backlogs, rate_limit)
        # The rate limit must ask Redis, and a trace begins in the ASGI application.
        is_fast = settings.fast_http and not (rate_limit or self.traces)
        self.known_heads = KnownHeads(settings, self.gate, endpoints) if is_fast else None
        self._add_attendants(controller_id, client, template, unreadable)

    def _predict(self, client: AsyncClient, backlogs: Backlogs, rate_limit: RateLimit | None) -> Predict:
        return Predict(
            settings=self.settings,
            endpoints=self.endpoints,
            gate=self.gate,
            rate_limit=rate_limit,
            watcher=self.watcher,
            backlogs=backlogs,
            dispatcher=self.dispatcher,
            results=self.results,
            idempotency=Idempotency(client, self.settings),
            large_bodies=self.large_bodies,
            refusals=self.refusals,
            clock=self.clock,
            drain=self.drain,
        )

    def _webhooks(self) -> Webhooks | None:
        """The delivery of webhooks; None if the settings allow none."""
        if not self.settings.webhook_hosts:
            return None
        return Webhooks(
            self.settings,
            self.client,
            self.ledger,
            watcher=self.watcher,
            clock=self.clock,
            count=self.metrics.webhook,
        )

    def _dispatcher(self, controller_id: str, template: bytes, backlogs: Backlogs) -> Dispatcher:
        buffer, metrics, traces = self.replay_buffer, self.metrics, self.traces
        accepted = [buffer.accepted, metrics.accepted]
        operate = self.operate
        completed = [backlogs.completed, buffer.completed, metrics.completed]
        completed += [operate.job_history.completed, operate.circuits.completed]
        if self.webhooks:
            completed.append(self.webhooks.completed)
        if traces:
            accepted.append(traces.accepted)
            completed.append(traces.completed)
        return Dispatcher(
            self.settings,
            BatchWriter(controller_id, self.settings, self.watcher),
            self.link,
            template,
            backlogs,
            self.clock,
            on_accepted=accepted,
            on_completed=completed,
        )

    def _add_attendants(
        self, controller_id: str, client: AsyncClient, template: bytes, unreadable: Unreadable
    ) -> None:
        """Add the background services."""
        heartbeat_s, retention_s = self.settings.heartbeat_s, self.settings.result_retention_s
        self.reconciler = Reconciler(
            controller_id, client, self.ledger, template, self.watcher, unreadable, interval_s=heartbeat_s
        )
        self.losses = LossWatch(
            client, heartbeat_s, retention_s, self.metrics.ledger_lost, self.replay_buffer.keep_s
        )
        links = self.settings.links | ({"batches": "batches"} if self.batch_files else {})
        self.feed = Feed(client, self.watcher, self.clock, heartbeat_s, links)

    def _listen(self, controller_id: str) -> None:
        self.link.listen(keys.reply_channel(controller_id), self.results.hear)
        self.link.listen(keys.POOL_CHANNEL, self.watcher.hear)

    async def try_example(self, queue: str) -> bool:
        """Run the example of a queue's version as a job of its own; whether it succeeded.

        Raises:
            ModelyardError: No worker is ready, or the queue is full.
        """
        record = next(
            (each for each in self.watcher.view.records if each.queue == queue and each.example), None
        )
        if record is None:
            return True  # without an example the next requests show it
        selector = Selector(worker=self.watcher.view.numbers[queue])
        asked = Asked(selector, EXAMPLE_WAIT_S, EXAMPLE_WAIT_S, b"", bodies.JSON)
        request = Request(asked, ANONYMOUS, None, self.clock.now_ms())
        job = await self.predict.submit_and_wait(request, [record.example.encode()])
        outcome = job.batch.outcome if job.batch else None
        return outcome is not None and outcome.jobs[job.index].status == "succeeded"


def _replay_buffer(settings: ControllerSettings, client: AsyncClient, clock: PoolClock) -> ReplayBuffer:
    behind_sentinel = sentinels(settings.effective_redis_url) is not None
    return ReplayBuffer(Replay(client), clock, settings.result_retention_s, behind_sentinel=behind_sentinel)


def _limits(settings: ControllerSettings) -> dict[str, int]:
    """The limits of a request, as the answer 413 names them."""
    return {"max_body_bytes": settings.max_body_bytes, "max_samples": settings.max_samples}
