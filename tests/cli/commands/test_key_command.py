"""`modelyard key`: prints a key and the line that lets it in."""

from __future__ import annotations

import json
import subprocess
import sys

from app.api_keys import holder, read_keys
from app.settings import ControllerSettings


def modelyard_key(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "key", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_key_is_let_in_by_the_line_and_neither_stands_among_the_explanations() -> None:
    done = modelyard_key("ops", "--role", "operate")
    assert done.returncode == 0, done.stderr
    key, line = done.stdout.splitlines()
    known = holder(read_keys(ControllerSettings(api_keys=line)), key.encode())
    assert known is not None
    assert (known.name, known.role) == ("ops", "operate")
    assert key not in line + done.stderr


def test_a_program_gets_the_key_and_its_line_as_json() -> None:
    done = modelyard_key("shop", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    known = holder(read_keys(ControllerSettings(api_keys=made["line"])), made["key"].encode())
    assert known is not None
    assert (known.name, known.role) == (made["name"], made["role"]) == ("shop", "predict")


def test_a_name_that_cannot_be_written_down_is_one_line() -> None:
    done = modelyard_key("two words")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
