"""`modelyard flower`: Flower on the project's Celery application."""

from __future__ import annotations

import os

import click

LOOPBACK = "127.0.0.1"


@click.command(
    "flower", context_settings={"ignore_unknown_options": True}, epilog="Every FLOWER_* variable works too."
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTIONS]...")
def command(options: tuple[str, ...]) -> None:
    """Watch workers, queues and batches in Flower, by default on 127.0.0.1:5555 only."""
    from app.celery_app import create_celery
    from app.settings import Settings, load

    # Flower by itself listens on every interface, and whoever reaches it may shut workers down.
    os.environ.setdefault("FLOWER_ADDRESS", LOOPBACK)
    create_celery(load(Settings)).start(["flower", *options])
