"""Shell completion of the command."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from modelyard.commands.main import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_printed(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert f"_MODELYARD_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "wor", {"worker", "workers"}),
        (["status"], "--w", {"--watch"}),
        (["completion"], "f", {"fish"}),
    ],
)
def test_commands_and_their_options_are_completed(
    words: list[str], incomplete: str, expected: set[str]
) -> None:
    found = ShellComplete(cli, {}, "modelyard", "_MODELYARD_COMPLETE").get_completions(words, incomplete)
    assert {each.value for each in found} == expected
