"""`modelyard retire`, `disable`, `enable`, `pin`, `unpin`, `forget`, `scale`, and the log of `decisions`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    WATCH_OPTION,
    Listing,
    examples,
    refuse_watched_json,
    utc,
    waiting,
    watch,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url

if TYPE_CHECKING:
    from modelyard import Client
    from modelyard.schemas import Decision, VersionControl, WorkerInfo

POLL_S = 0.5
WORKERS_END_S = 60.0  # after the last job; workers of older releases do not end by themselves
REASON_OPTION = click.option(
    "--reason", default="", metavar="TEXT", help="Why; shown by `status` and `decisions`."
)
DRY_RUN_OPTION = click.option("--dry-run", is_flag=True, help="Only check and say what would be done.")


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
    @DRY_RUN_OPTION
    @JSON_OPTION
    @URL_OPTION
    def command(version: tuple[str, int], reason: str, dry_run: bool, as_json: bool, url: str | None) -> None:
        _carry_out(
            url,
            as_json,
            done,
            lambda client: client.control(action, *version, reason=reason, dry_run=dry_run),
        )

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
@DRY_RUN_OPTION
@JSON_OPTION
@URL_OPTION
def unpin(model: str, reason: str, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Have all versions of a model compete again."""
    _carry_out(
        url,
        as_json,
        "competes with all its versions",
        lambda client: client.control("unpin", model, reason=reason, dry_run=dry_run),
    )


@click.command(
    "retire",
    epilog=examples(
        "modelyard retire MNIST_PyTorch_Model/1 --reason 'replaced by 2'",
        "modelyard retire MNIST_PyTorch_Model/1 --no-wait",
    ),
)
@click.argument("version", type=VersionName(), metavar="NAME/VERSION")
@click.option("--wait/--no-wait", default=True, help="Wait until its workers have ended.")
@click.option("--reroute", is_flag=True, help="Give its waiting jobs to the next version of its endpoint.")
@REASON_OPTION
@DRY_RUN_OPTION
@JSON_OPTION
@URL_OPTION
def retire(
    version: tuple[str, int],
    wait: bool,
    reroute: bool,
    reason: str,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Accept no more jobs for a version. Its workers run its accepted jobs, and end.

    Shows the progress, and waits until they have ended.
    """
    from modelyard import Client

    with Client(controller_url(url)) as client:
        done = client.control("retire", *version, reason=reason, reroute=reroute, dry_run=dry_run)
        is_awaited = wait and not dry_run
        left = _await_end(client, done) if is_awaited else f"; {done.open_jobs} jobs are still to run"
    moved = f", and {done.rerouted_jobs} of its jobs were moved" if reroute else ""
    _tell(done, as_json, f"is retired: it takes no more jobs{moved}{left}")


@click.command(
    "scale",
    epilog=examples("modelyard scale MNIST_PyTorch_Model/2 3", "modelyard scale MNIST_PyTorch_Model/2 auto"),
)
@click.argument("version", type=VersionName(), metavar="NAME/VERSION")
@click.argument("replicas", metavar="N|auto")
@REASON_OPTION
@DRY_RUN_OPTION
@JSON_OPTION
@URL_OPTION
def scale(
    version: tuple[str, int], replicas: str, reason: str, dry_run: bool, as_json: bool, url: str | None
) -> None:
    """Set the number of a version's workers, which `modelyard up` then starts or stops.

    It counts until modelyard.toml is edited; `auto` returns to the number that the file says.
    """
    if replicas != "auto" and not (replicas.isdecimal() and int(replicas)):
        raise click.BadParameter(f"{replicas!r} is neither a number from 1 nor `auto`", param_hint="N")
    count = None if replicas == "auto" else int(replicas)
    done = f"is scaled to {count} workers" if count else "has as many workers as modelyard.toml says"
    _carry_out(
        url, as_json, done, lambda client: client.scale(*version, count, reason=reason, dry_run=dry_run)
    )


@click.command(
    "decisions",
    epilog=examples(
        "modelyard decisions", "modelyard decisions --watch", "modelyard decisions --limit 5 --json"
    ),
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most decisions.")
@WATCH_OPTION
@JSON_OPTION
@URL_OPTION
def decisions(limit: int, watch_s: float | None, as_json: bool, url: str | None) -> None:
    """Show the decisions of operators, circuit breakers and the routing about versions, newest first."""
    from modelyard import Client
    from modelyard.schemas import DecisionList

    refuse_watched_json(watch_s, as_json=as_json)
    with Client(controller_url(url)) as client:
        if watch_s:
            watch(lambda: _listed(client.decisions(limit)), watch_s)
        elif as_json:
            write_json(DecisionList(client.decisions(limit)))
        else:
            write_listing(_listed(client.decisions(limit)))


def _listed(found: Iterable[Decision]) -> Listing:
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
    return Listing(columns, rows, {"version"}, empty="nothing was decided yet")


def _carry_out(url: str | None, as_json: bool, done: str, act: Callable[[Client], VersionControl]) -> None:
    from modelyard import Client

    with Client(controller_url(url)) as client:
        _tell(act(client), as_json, done)


def _tell(control: VersionControl, as_json: bool, done: str) -> None:
    if as_json:
        write_json(control)
        return
    version = "" if control.model_version is None else f"/{control.model_version}"
    if control.dry_run:
        jobs = f"; it has {control.open_jobs} open jobs" if control.model_version else ""
        done = f"would be {control.state}{jobs}. Nothing was changed"
    click.echo(f"{control.model_name}{version} {done}")


def _await_end(client: Client, done: VersionControl) -> str:
    """Wait until a retired version has no open jobs and no workers, with progress; returns what is left, in words."""

    def row() -> WorkerInfo | None:
        own = (done.model_name, done.model_version)
        return next((each for each in client.workers() if (each.model_name, each.model_version) == own), None)

    with click.progressbar(length=done.open_jobs, label="jobs left to run", file=sys.stderr) as bar:
        while (now := row()) and now.backlog_jobs:
            bar.update(max(0, done.open_jobs - now.backlog_jobs - bar.pos))
            time.sleep(POLL_S)
        bar.update(done.open_jobs - bar.pos)
    give_up_at_s = time.monotonic() + WORKERS_END_S
    with waiting("its workers end"):
        while (now := row()) and any(not each.follows for each in now.replicas):
            if time.monotonic() > give_up_at_s:
                stuck = ", ".join(f"process {each.main_pid} on {each.host}" for each in now.replicas)
                return f"; these workers have not ended, stop them: {stuck}"
            time.sleep(POLL_S)
    if now and now.replicas:
        return f"; its worker ends when the alias {now.replicas[0].follows} has moved to another version"
    return ", and its workers have ended"
