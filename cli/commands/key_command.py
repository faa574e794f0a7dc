"""`modelyard key`: makes an API key."""

from __future__ import annotations

import click

from app.api_keys import ROLES, Role, new_key
from modelyard.commands.console_output import JSON_OPTION, examples, write_json


@click.command(
    "key",
    epilog=examples(
        "modelyard key shop",
        "modelyard key ops --role operate",
        "modelyard key shop --json | jq -r .line >> keys",
    ),
)
@click.argument("name")
@click.option(
    "--role", type=click.Choice(ROLES), default="predict", show_default=True, help="operate includes predict."
)
@JSON_OPTION
def command(name: str, role: Role, as_json: bool) -> None:
    """Create an API key for the client NAME; a second key of the same name can replace the first.

    Prints the key, which is not stored, and the line for the file MODELYARD_API_KEYS_FILE.
    """
    key, made = new_key(name, role)
    if as_json:
        write_json({"name": name, "role": role, "key": key, "line": made.line()})
        return
    click.echo(f"The key of {name}, shown only once; set the client's MODELYARD_API_KEY to it:", err=True)
    click.echo(key)
    click.echo("The line for the controller's MODELYARD_API_KEYS_FILE:", err=True)
    click.echo(made.line())
