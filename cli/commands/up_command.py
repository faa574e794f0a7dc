"""`modelyard up`: runs a complete pool on this machine."""

from __future__ import annotations

import click


def parse_versions(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int]:
    """Parse a list such as `1,2`; empty without the option."""
    words = value.replace(" ", "").split(",") if value else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{value!r} is not a list of version numbers such as 1,2")
    return [int(word) for word in words]


@click.command("up")
@click.option(
    "--versions", callback=parse_versions, metavar="1,2", help="Versions to serve; default: the two newest."
)
@click.option(
    "--replicas", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers per version."
)
@click.option(
    "--controllers",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Controllers, each on its own port.",
)
@click.option("--views/--no-views", default=True, help="Run Flower and MLflow's user interface too.")
def command(versions: list[int], replicas: int, controllers: int, views: bool) -> None:
    """Run Redis, workers, controllers, Flower and MLflow until Ctrl-C, which stops all of them."""
    from rich.console import Console

    from app.settings import ControllerSettings, load
    from cli.local_pool.local_pool import PoolPlan, claimed, doing, open_pool, until_interrupted
    from cli.local_pool.served_versions import choose_versions, prepare_environments

    console = Console()
    settings = load(ControllerSettings)
    with until_interrupted(), claimed(settings, console):
        with doing("reading the registry", console):
            chosen = choose_versions(settings, versions)
        prepare_environments(chosen)
        with open_pool(settings, PoolPlan(chosen, replicas, controllers, views), console) as pool:
            pool.start_core()
            pool.start_views()
            pool.print_urls()
            console.print("Ctrl-C stops everything")
            pool.watch()
