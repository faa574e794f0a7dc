"""Readiness of a controller for the health probes: one reason per failed check."""

from __future__ import annotations

from controller.services import Services


def against_serving(services: Services) -> list[str]:
    """Why this controller cannot serve even reads; other controllers may be able to."""
    is_served = services.watcher.reachable and services.link.is_connected
    said = services.watcher.refusal or services.link.refusal
    checks = {
        "the controller is stopping": services.drain.is_announced,
        f"Redis refuses: {said}" if said else "Redis does not answer": not is_served,
    }
    return [reason for reason, fails in checks.items() if fails]


def against_accepting(services: Services) -> list[str]:
    """Why a serving controller would refuse a prediction: these reasons hold for every controller."""
    snapshot = services.watcher.view.snapshot
    checks = {
        "no worker is ready; start one with `modelyard worker`": not (
            snapshot.ready_versions or snapshot.cold
        ),
    }
    return [reason for reason, fails in checks.items() if fails]
