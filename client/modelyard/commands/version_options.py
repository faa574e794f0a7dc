"""Options that select the version which answers, and its parameters: those of `SubmitOptions`, and `params`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])


def _parsed(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Parameters by name; a value that is no JSON is text."""
    params: dict[str, Any] = {}
    for each in values:
        name, equals, text = each.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{each!r} is not NAME=VALUE, such as top_k=3")
        try:
            params[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            params[name] = text
    return params or None


def version_options(function: F) -> F:
    """Add `--model`, `--version`, `--endpoint`, `--worker` and `--param` to a command."""
    options = (
        click.option("--model", metavar="NAME[@ALIAS]", help="Model to use, or its version with an alias."),
        click.option("--version", metavar="V", help="Version of that model to use: its number or an alias."),
        click.option("--endpoint", metavar="NAME", help="Endpoint whose best version is to be used."),
        click.option(
            "--worker", type=int, metavar="N", help="Worker number to use instead of the policy's choice."
        ),
        click.option(
            "--param",
            "params",
            multiple=True,
            callback=_parsed,
            metavar="NAME=VALUE",
            help="Parameter of the version, its value as JSON or text; repeatable.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function
