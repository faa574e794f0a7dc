"""`modelyard models`: the registered versions, their quality, and the served ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from app.settings import Settings, load
from modelyard.commands.console_output import (
    JSON_OPTION,
    Listing,
    examples,
    waiting,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url

if TYPE_CHECKING:
    from modelyard import WorkerInfo

    Served = dict[tuple[str, int], WorkerInfo]

COLUMNS = ("model", "version", "aliases", "val_accuracy", "dataset", "other metrics", "served")
MOST_METRICS = 3
EXAMPLES = examples(
    "modelyard models",
    "modelyard models Prices",
    "modelyard models --json | jq '.models[] | select(.live_workers > 0)'",
)


@click.command("models", epilog=EXAMPLES)
@click.argument("name", required=False)
@JSON_OPTION
@URL_OPTION
def command(name: str | None, as_json: bool, url: str | None) -> None:
    """Show every version of the registry, or of the model NAME: its quality, its aliases, and whether it is served.

    The registry is MLFLOW_TRACKING_URI. What is served is read from the controller; without one, the column is
    empty.
    """
    settings = load(Settings)
    with waiting("reading the registry"):
        found = _read_registry(settings.mlflow_tracking_uri, name)
    served = _served(controller_url(url))
    for each in found:
        info = served.get((each["name"], each["version"])) if served is not None else None
        each["live_workers"] = None if served is None else info.live_workers if info else 0
        each["worker"] = info.worker if info else None
    if as_json:
        write_json({"models": found})
        return
    empty = f"there is no version of {name or 'any model'} in {settings.shown_registry}"
    marked = [place for place, each in enumerate(found) if each["live_workers"]]
    write_listing(
        Listing(
            COLUMNS,
            [_row(each) for each in found],
            {"version"},
            empty=f"{empty}; register one, for example with `modelyard train`",
            marked=marked,
        )
    )


def _read_registry(tracking_uri: str, name: str | None) -> list[dict[str, Any]]:
    """Every version, or those of one model, by name and newest first."""
    from app.quality import read_quality
    from app.registry_database import examine
    from training.inventory import ReadInPages, all_pages, connect, ready_versions, registry_errors

    if examine(tracking_uri) in ("missing", "empty"):
        return []
    client = connect(tracking_uri)
    with registry_errors(tracking_uri):
        models = all_pages(lambda token: client.search_registered_models(page_token=token))
        asked = sorted((each for each in models if name in (None, each.name)), key=lambda each: each.name)
        versions = [version for model in asked for version in ready_versions(client, model.name)]
        aliases = {model.name: model.aliases for model in asked}
        registry = ReadInPages(client, versions)
        described = [_described(registry, each, aliases[each.name], read_quality) for each in versions]
    return sorted(described, key=lambda each: (each["name"], -each["version"]))


def _described(registry: Any, version: Any, aliases: dict[str, str], read_quality: Any) -> dict[str, Any]:
    quality = read_quality(registry, version)
    run = registry.get_run(version.run_id) if version.run_id else None
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, found in aliases.items() if int(found) == int(version.version)),
        "val_accuracy": quality.value,
        "val_accuracy_source": quality.source,
        "dataset": quality.dataset,
        "metrics": dict(run.data.metrics) if run else {},
        "run_id": version.run_id or None,
        "created_at_ms": version.creation_timestamp,
    }


def _served(url: str) -> Served | None:
    """Served versions by name and number; None where no controller tells."""
    from modelyard import Client, ModelyardError, RetryPolicy

    try:
        with Client(url, retry=RetryPolicy(attempts=1)) as client:
            return {(each.model_name, each.model_version): each for each in client.workers()}
    except ModelyardError as error:
        click.echo(f"what is served is unknown: {error.detail}", err=True)
        return None


def _row(each: dict[str, Any]) -> list[object]:
    accuracy = "unknown" if each["val_accuracy"] is None else f"{each['val_accuracy']:.4f}"
    source = f" ({each['val_accuracy_source']})" if each["val_accuracy_source"] else ""
    others = [(key, value) for key, value in sorted(each["metrics"].items()) if key != "val_accuracy"]
    metrics = [f"{key} {value:.4g}" for key, value in others[:MOST_METRICS]]
    n_workers = each["live_workers"]
    served = f"worker {each['worker']}, {n_workers} ready" if n_workers else "no"
    return [
        each["name"],
        each["version"],
        ", ".join(each["aliases"]),
        f"{accuracy}{source}",
        each["dataset"],
        ", ".join(metrics) + (", …" if len(others) > MOST_METRICS else ""),
        None if n_workers is None else served,
    ]
