"""Flower's login from a file: an empty one is none, and what is wrong is said in a line before Flower starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.server_errors import ConfigurationError
from modelyard.commands.main import cli


def started(monkeypatch: pytest.MonkeyPatch, **variables: str) -> BaseException | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(cli, ["flower"]).exception


def test_a_login_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = started(monkeypatch, FLOWER_BASIC_AUTH_FILE=str(tmp_path / "nowhere"))
    assert isinstance(error, ConfigurationError)
    assert "FLOWER_BASIC_AUTH_FILE=" in error.detail
    assert "nowhere cannot be read" in error.detail


def test_a_login_that_is_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "login").write_text("ops:one")
    error = started(
        monkeypatch, FLOWER_BASIC_AUTH_FILE=str(tmp_path / "login"), FLOWER_BASIC_AUTH="ops:another"
    )
    assert isinstance(error, ConfigurationError)
    assert "remove one of them" in error.detail


def test_an_empty_login_file_is_no_login_and_with_api_keys_flower_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "login").write_text("\n")
    error = started(
        monkeypatch,
        FLOWER_BASIC_AUTH_FILE=str(tmp_path / "login"),
        MODELYARD_API_KEYS=f"ops operate sha256:{'0' * 64}",
    )
    assert isinstance(error, ConfigurationError)
    assert "needs a login too" in error.detail
