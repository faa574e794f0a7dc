"""The ``modelyard`` command. Subcommands are imported when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import os
import sys

import click

from app.errors import ModelyardError

# subcommand -> (module that holds a click command named ``command``, one line of help)
COMMANDS = {
    "train": ("cli.commands.train_command", "Train a model version and register it in MLflow."),
    "check": (
        "cli.commands.check_command",
        "Say whether a model version would be served, and what keeps it from that.",
    ),
    "inference": ("cli.commands.inference_command", "Predict with one model version, without any server."),
    "worker": ("cli.commands.worker_command", "Serve one model version from its queue."),
    "serve": ("cli.commands.serve_command", "Run the controller."),
    "predict": ("cli.commands.predict_command", "Send an image or a held-out digit to a controller."),
    "benchmark": ("cli.commands.benchmark_command", "Send many samples, record and plot their latencies."),
    "doctor": ("cli.commands.doctor_command", "Check a running pool, and mend it."),
    "jobs": ("cli.commands.jobs_command", "List quarantined jobs, and send them again."),
    "key": ("cli.commands.key_command", "Make an API key."),
    "flower": ("cli.commands.flower_command", "Watch workers, queues and batches in Flower."),
    "up": ("cli.commands.up_command", "Run a whole pool on this machine."),
    "demo": ("cli.commands.demo_command", "Train, register, serve and predict, from nothing."),
}


class LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command that was called."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the one-line helps without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="modelyard")
def cli() -> None:
    """Serve MLflow model versions behind one endpoint: a queue per version, routed by measured quality."""
    if "SUPERVISOR_ENABLED" not in os.environ:  # a pool's processes need not repeat what `up` has said
        _warn_of_unknown_variables()


def _warn_of_unknown_variables() -> None:
    if any(name.upper().startswith("MODELYARD_") for name in os.environ):
        from app.settings import unknown_variables

        for name, nearest in unknown_variables(os.environ).items():
            hint = f"; did you mean {nearest}?" if nearest else "; docs/configuration.md lists the settings"
            click.echo(f"modelyard: warning: {name} is not a setting, and is ignored{hint}", err=True)


def main() -> None:
    """Entry point: every error made on purpose is one line and exit status 1."""
    try:
        cli()
    except ModelyardError as error:
        click.echo(f"modelyard: {error.detail}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written, no descriptors left
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"modelyard: {place}{error.strerror or error}", err=True)
        sys.exit(1)
