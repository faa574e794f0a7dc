"""`modelyard completion`: prints the script with which a shell completes the command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from modelyard.commands.console_output import examples

PROGRAM = "modelyard"
EXAMPLES = examples(
    "modelyard completion bash > ~/.local/share/bash-completion/completions/modelyard",
    'eval "$(modelyard completion zsh)"   # in ~/.zshrc',
    "modelyard completion fish > ~/.config/fish/completions/modelyard.fish",
)


@click.command("completion", epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
