"""Secrets in text for people: taken out wherever the text comes from, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.server_errors import ModelyardError, first_line
from modelyard.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:p@ss@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("at https://token@host/x, and", "at https://***@host/x, and"),
        ("rediss://h/0?ssl_password=abc&db=1", "rediss://h/0?ssl_password=***&db=1"),
        ("sqlite:////home/me@corp/mlruns.db", "sqlite:////home/me@corp/mlruns.db"),
        ("models:/X@champion in http://h/a@b", "models:/X@champion in http://h/a@b"),
    ],
)
def test_the_user_and_the_passwords_of_a_url_are_hidden_and_paths_are_not(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert ModelyardError(text).detail == first_line(ValueError(text)) == str(ModelyardError(text)) == shown


def test_what_the_environment_holds_is_hidden_from_logs_and_tracebacks_however_it_is_spelt() -> None:
    secrets = {
        "MLFLOW_TRACKING_URI": "postgresql://me:with/slash-%40-1@db/mlflow",
        "MLFLOW_TRACKING_TOKEN": "token-in-a-header",
        "FLOWER_BASIC_AUTH": "admin:flower-password",
    }
    spelt = ["with/slash-%40-1", "with/slash-@-1", "token-in-a-header", "flower-password"]
    code = (
        "import logging, sys\nfrom app.logs import configure_logging\nconfigure_logging()\n"
        "try:\n    raise ValueError(sys.stdin.read())\n"
        "except ValueError as error:\n    logging.exception('%s of %s', error, str(error).encode())\n    raise\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=" and ".join(spelt),
        env=os.environ | secrets,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2
    assert [each for each in spelt if each in done.stderr] == []


def test_the_name_of_a_redis_user_is_not_taken_out_of_the_logs() -> None:
    code = (
        "import logging\nfrom app.logs import configure_logging\nconfigure_logging()\n"
        "logging.getLogger('controller.main').warning('the password is hunter-2-hunter')\n"
    )
    urls = {"REDIS_URL": "redis://controller@h/0", "OTHER_URL": "rediss://controller:hunter-2-hunter@h/0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | urls, capture_output=True, text=True, timeout=60
    )
    assert "controller.main: the password is ***\n" in done.stderr
