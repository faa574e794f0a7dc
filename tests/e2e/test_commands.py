"""The client's commands against a real pool: tables, JSON documents, exit statuses."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelyard import Client
from modelyard.commands.main import cli, run
from tests.conftest import wait_until_true
from tests.e2e.conftest import MODEL, Pool

Served = tuple[Pool, str, Client]
Call = Callable[..., Result]


@pytest.fixture
def call(served: Served) -> Call:
    """`call("status", "--json")` runs a command on the pool, and fails unless it ends with `status`."""

    def invoke(*words: str, status: int = 0, **options: Any) -> Result:
        done = CliRunner().invoke(cli, words, env={"MODELYARD_URL": served[1]}, **options)
        assert done.exit_code == status, (done.output, done.exception)
        return done

    return invoke


def rows_of(output: str) -> list[dict[str, str]]:
    """The rows of a table in plain lines, by the titles of the columns."""
    titles, *rows = [line.split("\t") for line in output.splitlines() if "\t" in line]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_status_marks_the_version_that_answers_and_orders_by_rank(call: Call) -> None:
    shown = call("status")
    assert "accepts jobs; 2 of 2 workers ready" in shown.stdout
    best, other = rows_of(shown.stdout)
    assert (best["rank"], best["version"], best["state"], best["workers"]) == ("1*", "2", "ready", "1/1")
    assert (other["rank"], other["model"]) == ("2", MODEL)
    assert float(best["val_accuracy"].split()[0]) > float(other["val_accuracy"].split()[0])
    told = json.loads(call("status", "--json").stdout)
    assert told["ready"] is True
    assert {each["worker"]: each["chosen"] for each in told["workers"]} == {1: False, 2: True}


def test_workers_lists_every_process_and_its_json_is_the_document_of_the_api(
    call: Call, served: Served
) -> None:
    rows = rows_of(call("workers").stdout)
    document = json.loads(call("workers", "--json").stdout)
    replicas = [each for info in document["workers"] for each in info["replicas"]]
    assert [row["id"] for row in rows] == [each["worker_id"] for each in replicas]
    assert {each["worker_id"] for each in replicas} == {
        each.worker_id for info in served[2].workers() for each in info.replicas
    }
    assert call("workers", "--json", "--watch", status=2).stderr.endswith("in place of --watch\n")


def test_watch_redraws_on_a_terminal_until_ctrl_c(served: Served) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "status", "--watch", "0.1", "--url", served[1]]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = ""
    while len(re.findall("accepts jobs", seen)) < 3:
        seen += os.read(ours, 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    wait_until_true(lambda: process.poll() is not None, what="the command has ended")
    os.close(ours)
    assert process.returncode == 0
    assert MODEL in seen


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["status", "--url", "http://127.0.0.1:9"], 3, "--url or MODELYARD_URL names another address"),
        (["predict", "--worker", "77"], 1, "known numbers: 1, 2"),
    ],
)
def test_an_error_is_one_line_with_the_next_step_and_a_status_of_its_kind(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    text: str,
) -> None:
    monkeypatch.setenv("MODELYARD_URL", served[1])
    monkeypatch.setattr(sys, "argv", ["modelyard", *words])
    with pytest.raises(SystemExit) as ended:
        run()
    told = capsys.readouterr().err
    assert (ended.value.code, len(told.splitlines())) == (status, 1)
    assert text in told
