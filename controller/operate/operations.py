"""Builds the services for operators."""

from __future__ import annotations

from app.clock import PoolClock
from app.redis.client import AsyncClient
from app.settings import ControllerSettings
from controller.operate.circuits import Circuits
from controller.operate.controls import Controls
from controller.operate.decision_log import DecisionLog
from controller.operate.job_history import JobHistory
from controller.operate.registry_webhook import RegistryWebhook, secret_of
from controller.operate.reroute import Reroute
from controller.operate.routing_changes import RoutingChanges


class Operations:
    """Controls, circuits, decisions, routing changes and the history of jobs.

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
