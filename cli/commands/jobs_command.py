"""`modelyard jobs`: lists and resends quarantined jobs, directly in the Redis of the pool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar, cast

import click
import msgspec

from app.server_errors import UnavailableError
from app.settings import Settings, load
from cli.redis_address import located
from modelyard.commands import job_list_command
from modelyard.commands.console_output import examples, utc

if TYPE_CHECKING:
    from app.ledger.ids import IdSigner
    from app.ledger.quarantine import Quarantine, Resent
    from app.redis.client import AsyncClient
    from modelyard.schemas import QuarantinedJob

T = TypeVar("T")
Act = Callable[["Quarantine", "AsyncClient"], Awaitable[T]]
REDIS_URL = click.option("--redis-url", metavar="URL", help="Redis [REDIS_URL].")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


@click.group(
    "jobs",
    invoke_without_command=True,
    epilog=examples(
        "modelyard jobs list --status open",
        "modelyard jobs quarantined --json",
        "modelyard jobs resend JOB_ID --deadline 300",
    ),
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List open, finished and quarantined jobs, and resend quarantined ones; alone, it lists the last finished ones."""
    if ctx.invoked_subcommand is None:
        job_list_command.command.main([], prog_name="modelyard jobs list", standalone_mode=False)


command.add_command(job_list_command.command)


@command.command("quarantined")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Number of jobs, newest first.",
)
@AS_JSON
@REDIS_URL
def quarantined(limit: int, as_json: bool, redis_url: str | None) -> None:
    """List jobs quarantined after crashing their worker, newest first."""
    jobs = asyncio.run(_with_quarantine(redis_url, lambda quarantine, _: quarantine.jobs(limit)))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(jobs), indent=2))
    else:
        _show(jobs)


@command.command("resend")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@click.option("--again", is_flag=True, help="Resend jobs even if they were resent before.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True, max=86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time until the new job expires.",
)
@AS_JSON
@REDIS_URL
def resend(
    job_ids: tuple[str, ...], again: bool, deadline_s: float, as_json: bool, redis_url: str | None
) -> None:
    """Resend quarantined jobs, each as a new job; a second call has no further effect."""

    async def send_all(quarantine: Quarantine, client: AsyncClient) -> None:
        signer = await _signer(client)
        for job_id in job_ids:
            _tell(job_id, await quarantine.resend(job_id, signer, deadline_s, again=again), as_json)

    asyncio.run(_with_quarantine(redis_url, send_all))


async def _with_quarantine(redis_url: str | None, act: Act[T]) -> T:
    from app.celery_app import create_celery
    from app.ledger.quarantine import Quarantine
    from app.ledger.wakeup_message import write_template
    from app.redis.client import connect_async

    settings = load(Settings, redis_url=redis_url)
    async with located(settings), connect_async(settings) as client:
        template = write_template(create_celery(settings))
        return await act(Quarantine(client, template, settings.result_retention_s), client)


async def _signer(client: AsyncClient) -> IdSigner:
    from app.ledger.ids import IdSigner
    from app.redis import keys
    from app.redis.client import ledger_errors

    with ledger_errors():
        secret = cast(bytes | None, await client.get(keys.SECRET))
    if secret is None:
        raise UnavailableError("no controller has used this Redis; check REDIS_URL")
    return IdSigner(secret)


def _tell(job_id: str, sent: Resent, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"id": sent.job_id, "resent_from": job_id, "sent_before": sent.again}))
    elif sent.again:
        click.echo(f"{job_id} was resent before, as {sent.job_id}; --again resends it")
    else:
        click.echo(f"{job_id} was resent as {sent.job_id}")


def _show(jobs: list[QuarantinedJob]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not jobs:
        click.echo("no job is in quarantine")
        return
    table = Table("job", "quarantined", "worker", "model version", "samples", "sent again as")
    for column in table.columns:
        column.overflow = "fold"
    for job in jobs:
        when = utc(job.quarantined_at_ms)
        version = f"{job.model_name} / {job.model_version}"
        table.add_row(job.job_id, when, str(job.worker), version, str(job.n_samples), job.resent_as or "")
    Console().print(table)
