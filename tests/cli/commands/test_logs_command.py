"""`modelyard logs`: one stream of all logs of a pool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.server_errors import ConfigurationError
from cli.commands.logs_command import Tail
from modelyard.commands.main import cli


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "controller.log").write_text("2026-11-29 01:00:02,000 INFO a: second\n  its detail\n")
    (folder / "redis.log").write_text("7:M 29 Nov 2026 01:00:01.500 * first\n")
    (folder / "mlflow.log").write_text("2026/11/29 01:00:03 INFO: third\n")
    (folder / "worker-v1.log").write_text(
        "2026-11-29 01:00:04.000 older\n2026-11-29 01:00:05.000 fourth\nno en"
    )
    (folder / "worker-v1.previous.log").write_text("before\n")
    return folder


def call(logs: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["logs", *words], env={"MODELYARD_STATE_DIR": str(logs.parent)})


def test_the_logs_of_all_processes_are_shown_in_the_order_of_time(logs: Path) -> None:
    lines = call(logs, "--lines", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("redis", "controller", "controller", "mlflow"),
        *("worker-v1", "worker-v1"),
    ]
    assert [line.split()[-1] for line in lines] == ["first", "second", "detail", "third", "older", "fourth"]


def test_a_name_selects_processes_and_json_is_one_document_a_line(logs: Path) -> None:
    shown = call(logs, "work", "--lines", "1", "--json").stdout.splitlines()
    assert [json.loads(line) for line in shown] == [
        {"process": "worker-v1", "line": "2026-11-29 01:00:05.000 fourth"}
    ]
    refused = call(logs, "flower").exception
    assert isinstance(refused, ConfigurationError)
    assert "known: controller, mlflow, redis, worker-v1" in refused.detail


def test_a_log_is_followed_across_its_rotation_without_torn_lines(logs: Path) -> None:
    path = logs / "worker-v1.log"
    tail = Tail(path, 0)
    assert (tail.last_lines, list(tail.new_lines())) == ([], [])
    with path.open("a") as file:
        file.write("d\nnext")
    assert list(tail.new_lines()) == ["no end"]
    path.rename(logs / "worker-v1.log.1")
    assert list(tail.new_lines()) == []
    path.write_text("in the new file\n")
    assert list(tail.new_lines()) == ["in the new file"]


def test_new_lines_are_shown_until_ctrl_c(logs: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "logs", "--follow", "redis", "--lines", "1"],
        env=os.environ | {"MODELYARD_STATE_DIR": str(logs.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline().endswith("* first\n")
        with (logs / "redis.log").open("a") as file:
            file.write("another\n")
        assert process.stdout.readline() == "redis        another\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
