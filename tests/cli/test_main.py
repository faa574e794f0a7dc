"""What every command does before its own work, and what client commands ask."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.settings import unknown_variables
from modelyard.commands.controller_option import controller_url
from modelyard.commands.main import cli

ADDRESS = ("MODELYARD_URL", "MODELYARD_HOST", "MODELYARD_PORT")


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:9000"),
        ({"MODELYARD_PORT": "9100"}, "http://127.0.0.1:9100"),
        ({"MODELYARD_HOST": "::", "MODELYARD_PORT": "9100"}, "http://[::1]:9100"),
        ({"MODELYARD_HOST": "[::1]"}, "http://[::1]:9000"),
        ({"MODELYARD_URL": "https://yard.example", "MODELYARD_PORT": "9100"}, "https://yard.example"),
    ],
)
def test_client_commands_ask_the_controller_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str
) -> None:
    for name in ADDRESS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert controller_url(None) == url
    assert controller_url("http://given:1") == "http://given:1"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MODELYARD_PROT", "MODELYARD_PORT"),
        ("MODELYARD_BACKLOG_LIMITS", "MODELYARD_BACKLOG_LIMIT"),
        ("MODELYARD_API_KYE", "MODELYARD_API_KEY"),
        ("MODELYARD_TRACKING_URI", "MLFLOW_TRACKING_URI"),
        ("MODELYARD_COLOUR_OF_THE_SKY", ""),
    ],
)
def test_unknown_variable_is_told_with_the_nearest_known_one(name: str, nearest: str) -> None:
    assert unknown_variables([name, "MODELYARD_PORT", "modelyard_port", "MODELYARD_API_KEY", "PATH"]) == {
        name: nearest
    }


def test_every_command_warns_of_an_unknown_variable_in_one_line() -> None:
    done = CliRunner().invoke(cli, ["key", "shop"], env={"MODELYARD_PROT": "9100"})
    assert done.exit_code == 0
    (warning,) = [line for line in done.stderr.splitlines() if "MODELYARD_PROT" in line]
    assert "did you mean MODELYARD_PORT?" in warning
    assert "MODELYARD_PROT" not in done.stdout


@pytest.mark.parametrize("command", [["doctor", "--patience", "0"], ["jobs", "quarantined"]])
def test_redis_that_does_not_answer_is_named_without_its_password(command: list[str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        url = f"redis://user:s3cret@127.0.0.1:{port}/2"
        done = CliRunner().invoke(cli, command, env={"REDIS_URL": url})
    told = done.stderr + str(done.exception)
    assert f"Redis does not answer at redis://127.0.0.1:{port}/2" in told
    assert "s3cret" not in told


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "command", "library"),
    [
        ("cli", "status", "httpx"),
        ("cli", "worker", "celery"),
        ("modelyard", "--help", "click"),
        ("modelyard", "status", "numpy"),
    ],
)
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback(
    tmp_path: Path, program: str, command: str, library: str
) -> None:
    (tmp_path / f"{library}.py").write_text("print('importing', flush=True)\nwhile True:\n    pass\n")
    with subprocess.Popen(
        [sys.executable, "-m", program, command],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "MODEL_VERSION": "latest"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")
