"""`modelyard retire`, `disable`, `enable`, `pin`, `unpin`, `forget`: versions out of service, and `decisions`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    Listing,
    examples,
    utc,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url

if TYPE_CHECKING:
    from modelyard import Client
    from modelyard.schemas import VersionControl

POLL_S = 0.5
REASON_OPTION = click.option(
    "--reason", default="", metavar="TEXT", help="Why; shown by `status` and `decisions`."
)


class VersionName(click.ParamType[tuple[str, int]]):
    """A model's name and version, `NAME/2`."""

    name = "NAME/VERSION"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Split it at the last slash."""
        model, _, version = str(value).rpartition("/")
        if not model or not version.isdecimal() or int(version) < 1:
            self.fail(
                f"{value!r} names no version; expected a name and a number such as MNIST_PyTorch_Model/2"
            )
        return model, int(version)


def _version_command(action: str, done: str, text: str) -> click.Command:
    """A command that carries out an action on one version and says what was done."""

    @click.command(
        action, help=text, epilog=examples(f"modelyard {action} MNIST_PyTorch_Model/2 --reason 'drifts'")
    )
    @click.argument("version", type=VersionName(), metavar="NAME/VERSION")
    @REASON_OPTION
    @JSON_OPTION
    @URL_OPTION
    def command(version: tuple[str, int], reason: str, as_json: bool, url: str | None) -> None:
        _carry_out(url, as_json, done, lambda client: client.control(action, *version, reason=reason))

    return command


disable = _version_command(
    "disable",
    "is disabled: routing does not choose it; requests that name it still reach it",
    "Keep routing from choosing a version; requests that name it still reach it.",
)
enable = _version_command("enable", "is in service", "Put a disabled or retired version back into service.")
pin = _version_command(
    "pin",
    "is pinned: of its model, routing chooses it alone; `modelyard unpin` ends that",
    "Have routing choose this version of its model alone.",
)
forget = _version_command(
    "forget",
    "is forgotten",
    "Remove a version that has no workers and no jobs; its worker number becomes unknown.",
)


@click.command("unpin", epilog=examples("modelyard unpin MNIST_PyTorch_Model"))
@click.argument("model")
@REASON_OPTION
@JSON_OPTION
@URL_OPTION
def unpin(model: str, reason: str, as_json: bool, url: str | None) -> None:
    """Have all versions of a model compete again."""
    _carry_out(
        url,
        as_json,
        "competes with all its versions",
        lambda client: client.control("unpin", model, reason=reason),
    )


@click.command(
    "retire",
    epilog=examples(
        "modelyard retire MNIST_PyTorch_Model/1 --reason 'replaced by 2'",
        "modelyard retire MNIST_PyTorch_Model/1 --no-wait",
    ),
)
@click.argument("version", type=VersionName(), metavar="NAME/VERSION")
@click.option("--wait/--no-wait", default=True, help="Wait until its accepted jobs are done.")
@REASON_OPTION
@JSON_OPTION
@URL_OPTION
def retire(version: tuple[str, int], wait: bool, reason: str, as_json: bool, url: str | None) -> None:
    """Accept no more jobs for a version, and wait until its accepted jobs are done. Its workers may then stop."""
    from modelyard import Client

    with Client(controller_url(url)) as client:
        done = client.control("retire", *version, reason=reason)
        if wait and done.open_jobs:
            _drain(client, done)
    if as_json:
        write_json(done)
    else:
        left = "" if wait or not done.open_jobs else f"; {done.open_jobs} jobs are still to run"
        click.echo(
            f"{'/'.join(map(str, version))} is retired: it takes no more jobs{left}; its workers may stop"
        )


@click.command("decisions", epilog=examples("modelyard decisions", "modelyard decisions --limit 5 --json"))
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most decisions.")
@JSON_OPTION
@URL_OPTION
def decisions(limit: int, as_json: bool, url: str | None) -> None:
    """Show the decisions of operators and circuit breakers about versions, newest first."""
    from modelyard import Client
    from modelyard.schemas import DecisionList

    with Client(controller_url(url)) as client:
        found = client.decisions(limit)
    if as_json:
        write_json(DecisionList(found))
        return
    rows = [
        [
            utc(each.at_ms),
            each.kind,
            each.model_name,
            each.model_version,
            each.by or None,
            each.reason or None,
        ]
        for each in found
    ]
    columns = ("when", "decision", "model", "version", "by", "reason")
    write_listing(Listing(columns, rows, {"version"}, empty="nothing was decided yet"))


def _carry_out(url: str | None, as_json: bool, done: str, act: Callable[[Client], VersionControl]) -> None:
    from modelyard import Client

    with Client(controller_url(url)) as client:
        control = act(client)
    if as_json:
        write_json(control)
    else:
        version = "" if control.model_version is None else f"/{control.model_version}"
        click.echo(f"{control.model_name}{version} {done}")


def _drain(client: Client, done: VersionControl) -> None:
    """Wait until the version has no open jobs, with progress."""

    def left() -> int:
        own = (done.model_name, done.model_version)
        return sum(
            each.backlog_jobs for each in client.workers() if (each.model_name, each.model_version) == own
        )

    with click.progressbar(length=done.open_jobs, label="jobs left to run", file=sys.stderr) as bar:
        while n_left := left():
            bar.update(max(0, done.open_jobs - n_left - bar.pos))
            time.sleep(POLL_S)
        bar.update(done.open_jobs - bar.pos)
