"""Lets ``python -m training`` be ``modelyard train``."""

from __future__ import annotations

import sys

import click

from app.server_errors import ModelyardError
from training.command import command

if __name__ == "__main__":
    try:
        command(prog_name="python -m training")
    except ModelyardError as error:
        click.echo(f"modelyard: {error.detail}", err=True)
        sys.exit(1)
