"""`modelyard doctor`: checks the ledger of a running pool, reports its findings, and repairs them on request."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from app.server_errors import LedgerUnavailableError
from app.settings import Settings, load
from cli.redis_address import located
from modelyard.commands.console_output import examples, waiting

if TYPE_CHECKING:
    from app.fsck.consistency_check import Report
    from app.fsck.findings import Finding

EXIT_FOUND = 1
EXIT_NO_REDIS = 2


@click.command("doctor", epilog=examples("modelyard doctor", "modelyard doctor --mend --json"))
@click.option("--mend", is_flag=True, help="Repair findings that can be repaired safely.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time for which a finding must persist before it is reported; default: the time in which the pool "
    "recovers by itself.",
)
@click.option("--redis-url", metavar="URL", help="Redis [REDIS_URL].")
def command(mend: bool, as_json: bool, patience_s: float | None, redis_url: str | None) -> None:
    """Check a running pool for lost, stuck and stale data.

    Exit status: 0 healthy, 1 findings (repaired or not), 2 Redis does not answer.
    """
    settings = load(Settings, redis_url=redis_url)
    try:
        with waiting("examining the pool"):
            report = asyncio.run(_examine(settings, patience_s, mend))
    except LedgerUnavailableError as error:
        click.echo(f"modelyard: {error.detail}", err=True)
        sys.exit(EXIT_NO_REDIS)
    if as_json:
        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        _show(report, tried=mend)
    sys.exit(0 if report.is_healthy else EXIT_FOUND)


async def _examine(settings: Settings, patience_s: float | None, mend: bool) -> Report:
    from app.fsck import consistency_check
    from app.redis.client import connect_async

    async with located(settings), connect_async(settings) as client:
        made = consistency_check.Doctor(client, settings)
        report = await made.examine(
            consistency_check.patience_s(settings) if patience_s is None else patience_s
        )
        if mend:
            await made.mend(report)
        return report


def _as_json(report: Report) -> dict[str, Any]:
    rows = [asdict(each) | {"mended": _is_mended(report, each)} for each in report.findings]
    return {
        "healthy": report.is_healthy,
        "findings": rows,
        "notes": report.notes,
        "counts": report.counts,
        "looks": report.looks,
    }


def _is_mended(report: Report, finding: Finding) -> bool:
    return (finding.kind, finding.subject) in report.mended


def _show(report: Report, tried: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    seen = Table.grid(padding=(0, 1))
    seen.add_column(justify="right")
    for what, n in sorted(report.counts.items()):
        seen.add_row(f"{n:,}", escape(what), style="dim")
    seen.add_row(f"{report.looks:,}", "looks", style="dim")
    console.print(seen)
    for note in report.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]", highlight=False)
    if report.is_healthy:
        console.print("[green]healthy[/green]")
        return
    table = Table("kind", "what", "why", *(["mended"] if tried else []))
    for each in report.findings:
        mended = ["yes" if _is_mended(report, each) else "no"] if tried else []
        table.add_row(each.kind, escape(each.subject), escape(each.detail), *mended)
    console.print(table)
    if not tried:
        console.print("`modelyard doctor --mend` repairs findings that can be repaired safely")
