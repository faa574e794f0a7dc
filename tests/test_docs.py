"""README and docs say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.contract import TensorContract
from configuration_page import PAGE, page
from controller.input.json_numbers import parse
from modelyard.commands import exit_status, interrupts
from modelyard.commands.main import cli, known_commands

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")


def test_the_configuration_page_is_as_the_settings_are() -> None:
    assert PAGE.read_text() == page(), "run `python scripts/configuration_page.py`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(page), f"{target} names no heading"


def test_the_site_has_a_place_for_every_page() -> None:
    named = re.findall(r"^ +- [^:]+: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(named) == sorted([*pages, "index.md", "adr/index.md"])


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as they are rendered."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_command_that_the_pages_name_exists() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    named = set(re.findall(r"`modelyard ([a-z]+)\b", text)) | set(
        re.findall(r"^(?:\w+=\S+ )*modelyard ([a-z]+)\b", text, re.MULTILINE)
    )
    assert named
    assert named <= known_commands().keys()


def test_the_page_of_commands_lists_each_of_them_and_every_exit_status() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert set(re.findall(r"^\| `modelyard ([a-z]+)` \|", text, re.MULTILINE)) == known_commands().keys()
    statuses = {*exit_status.STATUSES.values(), exit_status.FAILED, interrupts.INTERRUPTED, 0, 2}
    assert {int(each) for each in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == statuses


def test_the_help_of_every_command_shows_examples_of_it() -> None:
    for name in known_commands():
        shown = CliRunner().invoke(cli, [name, "--help"]).stdout
        assert f"modelyard {name}" in shown.partition("Examples:")[2], name


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert len(readme.split()) <= 1100


def test_every_decision_has_a_status_and_fits_a_page() -> None:
    for path in (ROOT / "docs" / "adr").glob("*.md"):
        text = path.read_text()
        assert "**Status.**" in text, path.name
        assert len(text.split()) <= 600, path.name


def test_the_example_digit_spells_one_sample() -> None:
    body = (ROOT / "examples" / "seven.json").read_bytes()
    assert parse(body).fit(TensorContract("float32", (1, 28, 28)))
    assert np.shape(json.loads(body)["data"]) == (1, 1, 28, 28)
