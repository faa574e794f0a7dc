"""The `modelyard` command. Subcommands are imported when they are called, so that `--help` is quick.

The server's distribution adds its own subcommands where it is installed beside this one.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem

from modelyard.client_errors import ControllerUnreachableError
from modelyard.commands.exit_status import FAILED, exit_status
from modelyard.commands.interrupts import INTERRUPTED, end_on_interrupt, raise_on_interrupt
from modelyard.errors import ModelyardError

SERVER, GROUP = "modelyard", "modelyard.commands"  # its distribution, and the entry points in that
OWN_PACKAGES = frozenset({"modelyard", "app", "cli", "controller", "training", "workers"})


class Command(NamedTuple):
    """A subcommand that is not imported yet.

    Attributes:
        module: Module that holds a click command named `command`, or `MODULE:NAME`.
        help: One line.
        requirement: What pip has to install for it.
    """

    module: str
    help: str
    requirement: str


COMMANDS = {
    "status": Command(
        "modelyard.commands.status_command",
        "Show the served versions: quality, speed, backlog.",
        "modelyard-client[commands]",
    ),
    "workers": Command(
        "modelyard.commands.workers_command",
        "Show the worker processes.",
        "modelyard-client[commands]",
    ),
    "predict": Command(
        "modelyard.commands.predict_command",
        "Send samples to a controller, and show the outcome.",
        "modelyard-client[commands,digits]",
    ),
    "submit": Command(
        "modelyard.commands.submit_command",
        "Send samples, and print the id of the job.",
        "modelyard-client[commands,digits]",
    ),
    "results": Command(
        "modelyard.commands.results_command",
        "Show jobs and their outcomes.",
        "modelyard-client[commands]",
    ),
    "why": Command(
        "modelyard.commands.why_command",
        "Explain why a job went to its version.",
        "modelyard-client[commands]",
    ),
    "route": Command(
        "modelyard.commands.route_command",
        "Show where a request would go, and why.",
        "modelyard-client[commands]",
    ),
    "batch": Command(
        "modelyard.commands.batch_command",
        "Predict every row of a file.",
        "modelyard-client[commands]",
    ),
    **{
        name: Command(f"modelyard.commands.operation_commands:{name}", text, "modelyard-client[commands]")
        for name, text in (
            ("retire", "Accept no more jobs for a version, and wait until its workers have ended."),
            ("disable", "Keep routing from choosing a version."),
            ("enable", "Put a version back into service."),
            ("pin", "Have routing choose one version of a model alone."),
            ("unpin", "Have all versions of a model compete again."),
            ("forget", "Remove a version that nobody serves."),
            ("scale", "Set the number of a version's workers."),
            ("decisions", "Show the decisions about versions."),
        )
    },
    "benchmark": Command(
        "modelyard.commands.benchmark_command",
        "Send many samples, record and plot their latencies.",
        "modelyard-client[commands,plots]",
    ),
    "completion": Command(
        "modelyard.commands.completion_command",
        "Print the completion script for a shell.",
        "modelyard-client[commands]",
    ),
}


@cache
def server() -> ModuleType | None:
    """The module of the server's commands: it has `COMMANDS` and `warn_of_unknown_variables`.

    The distribution is asked by its name, because looking for the group in all of them takes a hundred times as long.
    """
    try:
        found = distribution(SERVER).entry_points.select(group=GROUP)
    except PackageNotFoundError:
        return None
    return next((importlib.import_module(each.value) for each in found), None)


def known_commands() -> dict[str, Command]:
    """Every subcommand that is installed, by name."""
    added = server()
    return {**added.COMMANDS, **COMMANDS} if added else COMMANDS


class LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, the server's first."""
        return list(known_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command that was called."""
        found = known_commands().get(cmd_name)
        if found is None:
            return None
        module, _, attribute = found.module.partition(":")
        command = getattr(importlib.import_module(module), attribute or "command")
        raise_on_interrupt()
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was called; click itself would end with status 1 on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        finally:
            end_on_interrupt()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without importing them."""
        matching = [name for name in known_commands() if name.startswith(incomplete)]
        own = [CompletionItem(name, help=known_commands()[name].help) for name in matching]
        return [*own, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the one-line helps without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.help) for name, each in known_commands().items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="modelyard-client")
def cli() -> None:
    """Serve MLflow model versions behind one endpoint: a queue per version, routed by measured quality."""
    added = server()
    if added:
        added.warn_of_unknown_variables()


def run() -> None:
    """Run the command: every error made on purpose is one line, and its kind is the exit status."""
    try:
        cli()
    except ControllerUnreachableError as error:
        _fail(f"{error.detail} --url or MODELYARD_URL names another address", exit_status(error))
    except ModelyardError as error:
        _fail(error.detail, exit_status(error))
    except OSError as error:  # a full disk, a folder that cannot be written, no descriptors left
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except ModuleNotFoundError as error:
        called = known_commands().get(" ".join(sys.argv[1:2]))
        if called is None or not error.name or error.name.partition(".")[0] in OWN_PACKAGES:
            raise
        _fail(f"`{sys.argv[1]}` needs {error.name}: pip install '{called.requirement}'")


def _fail(reason: str, status: int = FAILED) -> NoReturn:
    if os.environ.get("MODELYARD_LOG_FORMAT") == "json" and logging.getLogger().handlers:
        logging.getLogger("modelyard").critical(reason)  # of a process that logs JSON, the last line too
    else:
        click.echo(f"modelyard: {reason}", err=True)
    sys.exit(status)
