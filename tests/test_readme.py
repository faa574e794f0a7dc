"""The README says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from app.contract import InputContract
from cli.main import COMMANDS
from controller.input.json_numbers import parse
from scripts.settings_table import rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_setting_stands_in_the_readme_with_its_default_and_meaning() -> None:
    missing = [row for row in rows() if row not in README]
    assert not missing, "run `python scripts/settings_table.py` and put its table into the README"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_command_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"modelyard (train|inference|[a-z]+)\b(?= ?[`\-\[\n])", README))
    assert named
    assert named <= COMMANDS.keys()


def test_the_example_digit_spells_one_sample() -> None:
    body = (ROOT / "examples" / "seven.json").read_bytes()
    assert parse(body).fit(InputContract("float32", (1, 28, 28)))
    assert np.shape(json.loads(body)["data"]) == (1, 1, 28, 28)


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
