"""The server's subcommands of `modelyard`; the entry point `modelyard.commands` names this module."""

from __future__ import annotations

import os

import click

from modelyard.commands.main import Command

COMMANDS = {
    "train": Command(
        "cli.commands.train_command",
        "Train a model version and register it in MLflow.",
        "modelyard[training]",
    ),
    "models": Command(
        "cli.commands.models_command",
        "Show the registry's versions, and which are served.",
        "modelyard[training]",
    ),
    "check": Command(
        "cli.commands.check_command",
        "Report whether a worker would serve a model version.",
        "modelyard[worker]",
    ),
    "inference": Command(
        "cli.commands.inference_command",
        "Predict with one model version, without any server.",
        "modelyard[training]",
    ),
    "worker": Command(
        "cli.commands.worker_command", "Serve one model version from its queue.", "modelyard[worker]"
    ),
    "serve": Command("cli.commands.serve_command", "Run the controller.", "modelyard[controller]"),
    "doctor": Command("cli.commands.doctor_command", "Check a running pool, and repair it.", "modelyard"),
    "jobs": Command("cli.commands.jobs_command", "List jobs, and resend quarantined ones.", "modelyard"),
    "logs": Command("cli.commands.logs_command", "Show the logs of the pool on this machine.", "modelyard"),
    "key": Command("cli.commands.key_command", "Create an API key.", "modelyard"),
    "flower": Command(
        "cli.commands.flower_command", "Monitor workers, queues and batches in Flower.", "modelyard[flower]"
    ),
    "up": Command("cli.commands.up_command", "Run a whole pool on this machine.", "modelyard[all]"),
    "plan": Command(
        "cli.commands.plan_command", "Show what `modelyard up` would start and stop.", "modelyard[all]"
    ),
    "demo": Command(
        "cli.commands.demo_command", "Train, register, serve and predict on example data.", "modelyard[all]"
    ),
}


def warn_of_unknown_variables() -> None:
    """Warn of each environment variable that looks like a setting but is unknown."""
    if "SUPERVISOR_ENABLED" in os.environ:  # a pool's processes need not repeat the warnings of `up`
        return
    if any(name.upper().startswith("MODELYARD_") for name in os.environ):
        from app.settings import unknown_variables

        for name, nearest in unknown_variables(os.environ).items():
            hint = f"; did you mean {nearest}?" if nearest else "; docs/configuration.md lists the settings"
            click.echo(f"modelyard: warning: {name} is not a setting, and is ignored{hint}", err=True)
