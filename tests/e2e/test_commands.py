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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from modelyard import (
    Client,
    ControllerUnreachableError,
    Job,
    JobExpiredError,
    ModelyardError,
    WaitTimeoutError,
)
from modelyard.commands.exit_status import exit_status
from modelyard.commands.main import cli, run
from modelyard.errors import QueueFullError
from tests.conftest import wait_until_true
from tests.e2e.conftest import MODEL, Digits, Pool

JOB = Job(
    id="a.0",
    status="expired",
    worker=1,
    model_name="M",
    model_version=1,
    val_accuracy=None,
    policy="forced",
    forced=True,
    result_url="/results/a.0",
)
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


def test_a_password_in_the_address_of_the_controller_is_not_shown(call: Call, served: Served) -> None:
    address = served[1].replace("://", "://user:pass@")
    for words in (["status"], ["status", "--json"], ["submit", "--digit", "0"]):
        shown = call(*words, "--url", address).output
        assert "pass@" not in shown
        assert "***@" in shown


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


def test_predict_reads_every_kind_of_input_for_any_version(
    call: Call, digits: Digits, tmp_path: Path
) -> None:
    np.save(tmp_path / "three.npy", digits.images[:3])
    np.savez(tmp_path / "three.npz", digits.images[:3])
    (tmp_path / "body.json").write_text(json.dumps(digits.body(0)))
    (tmp_path / "samples.json").write_text(json.dumps(digits.images[:3].tolist()))
    pixels = (digits.images[:2, 0] * 255).astype(np.uint8)
    for place, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{place}.png")
    image = ["--image", str(tmp_path / "0.png")]
    expected = [each["class"] for each in predictions(call, "--data", str(tmp_path / "three.npy"))]
    for words in (
        ["--data", str(tmp_path / "three.npz")],
        ["--data", str(tmp_path / "samples.json")],
        ["--data", str(tmp_path / "body.json")],
        image,
        [*image, "--image", str(tmp_path / "1.png")],
        [*image, "--endpoint", MODEL],
    ):
        found = [each["class"] for each in predictions(call, *words)]
        assert found == expected[: len(found)], words
    piped = call("predict", "--data", "-", "--json", input=(tmp_path / "three.npy").read_bytes())
    assert [each["class"] for each in json.loads(piped.stdout)["predictions"]] == expected
    shown = call("predict", "--data", str(tmp_path / "three.npy"), "--model", f"{MODEL}@champion").stdout
    assert [row["class"] for row in rows_of(shown)] == list(map(str, expected))
    assert "give one of" in call("predict", "--digit", "1", *image, status=2).stderr


def predictions(call: Call, *words: str) -> list[dict[str, Any]]:
    answered: list[dict[str, Any]] = json.loads(call("predict", *words, "--json").stdout)["predictions"]
    return answered


def test_a_submitted_job_is_read_by_its_id(call: Call, tmp_path: Path) -> None:
    first, second = (call("submit", "--digit", str(digit)) for digit in (1, 2))
    job_id, url = first.stdout.strip(), first.stderr.split()[1]
    assert url.endswith(f"/results/{job_id}")
    shown = call("results", url, "--wait", "20").stdout
    assert MODEL in shown
    output = tmp_path / "jobs.ndjson"
    ids = [job_id, second.stdout.strip()]
    told = json.loads(call("results", *ids, "--wait", "20", "--output", str(output), "--json").stdout)
    assert [each["id"] for each in told["jobs"]] == ids
    assert [json.loads(line) for line in output.read_text().splitlines()] == told["jobs"]
    [row, unknown] = rows_of(call("results", job_id, "nothing", status=1).stdout)
    assert (row["status"], unknown["status"]) == ("succeeded", "unknown")


def test_jobs_are_listed_by_filters_and_pages(call: Call) -> None:
    job_id = call("submit", "--digit", "4", "--worker", "1").stdout.strip()
    call("results", job_id, "--wait", "20")
    words = ["jobs", "list", "--model", MODEL, "--version", "1", "--since", "1h"]
    wait_until_true(lambda: job_id in call(*words).stdout, what="the finished job is listed")
    [row] = rows_of(call(*words, "--limit", "1").stdout)
    assert (row["job"], row["status"], row["samples"]) == (job_id, "succeeded", "1")
    page = json.loads(call(*words, "--status", "succeeded", "--json").stdout)
    assert page["jobs"][0]["id"] == job_id
    assert call("jobs", "list", "--code", "model_failed").stdout == "no such job\n"
    assert "such as 90s" in call("jobs", "list", "--since", "noon", status=2).stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelyardError("x"), 1),
        (ControllerUnreachableError("x"), 3),
        (QueueFullError("x"), 3),
        (JobExpiredError(JOB), 4),
        (WaitTimeoutError(JOB), 5),
    ],
)
def test_the_exit_status_tells_the_kind_of_an_error(error: ModelyardError, status: int) -> None:
    assert exit_status(error) == status


def test_models_lists_the_registry_and_what_is_served(
    call: Call, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{served[0].folder}/mlruns.db")
    newest, oldest = rows_of(call("models").stdout)
    assert (newest["version"], newest["aliases"], newest["served"]) == ("2", "champion", "worker 2, 1 ready")
    assert newest["val_accuracy"].endswith("(model)")
    assert "val_loss" in oldest["other metrics"]
    told = json.loads(call("models", MODEL, "--json").stdout)["models"]
    assert [(each["version"], each["live_workers"]) for each in told] == [(2, 1), (1, 1)]
    assert "there is no version of Nothing" in call("models", "Nothing").stdout
    unknown = call("models", "--url", "http://127.0.0.1:9")
    assert "what is served is unknown" in unknown.stderr
    assert {row["served"] for row in rows_of(unknown.stdout)} == {"-"}


def test_versions_are_taken_out_of_service_and_put_back(call: Call, digits: Digits, served: Served) -> None:
    pool, url, client = served
    best, other = f"{MODEL}/2", f"{MODEL}/1"

    def answering() -> int:
        return client.predict(digits.images[:1]).model_version

    assert call("disable", best, "--reason", "drifts").stdout.startswith(f"{best} is disabled: ")
    assert answering() == 1
    assert json.loads(call("enable", best, "--json").stdout)["state"] == "enabled"
    assert answering() == 2
    call("pin", other)
    assert answering() == 1
    call("unpin", MODEL)
    assert answering() == 2
    assert "takes no more jobs" in call("retire", best, "--no-wait").stdout
    assert answering() == 1
    call("enable", best)
    assert f"{best} is in use" in str(call("forget", best, status=1).exception)
    [retired] = [each.main_pid for row in client.workers() if row.model_version == 2 for each in row.replicas]
    [worker] = [each for each in pool.processes if each.pid == retired]
    assert "and its workers have ended" in call("retire", best).stdout
    assert worker.wait(30) == 0
    pool.processes = [each for each in pool.processes if each.poll() is None]
    pool.worker(2, 2)  # as a process manager starts it again
    logs = pool.folder.glob
    pool.wait_until(
        lambda: any("this worker waits for" in log.read_text() for log in logs("*.log")),
        timeout_s=60,
        what="the worker of the retired version waits",
    )
    assert not any(row.replicas for row in client.workers() if row.model_version == 2)
    call("enable", best)
    pool.wait_for_workers(url, 2)
    listed = [line.split("\t")[1:4] for line in call("decisions", "--limit", "9").stdout.splitlines()]
    assert [line for line in listed if line[0] != "chosen"][:3] == [
        ["decision", "model", "version"],
        ["enabled", MODEL, "2"],
        ["retired", MODEL, "2"],
    ]
    assert "expected a name and a number" in call("retire", MODEL, status=2).stderr
