"""The client, the command line and the documentation page against a real pool."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.server_errors import JobNotCancellableError, UnknownJobError, UnknownWorkerError
from modelyard import AsyncClient, Client
from tests.e2e.conftest import Digits, Pool

Served = tuple[Pool, str, Client]
EXAMPLE = Path(__file__).parents[2] / "examples" / "seven.json"


def modelyard(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_example_of_the_readme_is_a_seven(served: Served) -> None:
    _, url, _ = served
    answer = httpx.post(f"{url}/predict?wait=5", content=EXAMPLE.read_bytes())
    assert answer.status_code == 200
    assert [each["class"] for each in answer.json()["predictions"]] == [7]


def test_the_client_predicts_submits_waits_and_names_errors(served: Served, digits: Digits) -> None:
    _, _, client = served
    several = client.predict(digits.images[:50])
    right = sum(
        p.predicted == label for p, label in zip(several.predictions, digits.labels[:50], strict=True)
    )
    assert right >= 45
    job = client.submit(digits.images[:1], worker=1)
    done = client.wait(job.id, timeout_s=10)
    assert (done.status, done.model_version, done.forced) == ("succeeded", 1, True)
    with pytest.raises(JobNotCancellableError):
        client.cancel(job.id)
    with pytest.raises(UnknownJobError):
        client.result(job.id[:-1] + "7")
    with pytest.raises(UnknownWorkerError, match="known numbers: 1, 2"):
        client.predict(digits.images[:1], worker=77)


async def test_many_asynchronous_predictions_answer_each_its_own_digit(
    served: Served, digits: Digits
) -> None:
    _, url, _ = served
    async with AsyncClient(url) as client:
        alone = await asyncio.gather(*(client.predict(digits.images[i : i + 1]) for i in range(64)))
        together = await client.predict(digits.images[:64])
    scores = np.array([job.predictions[0].scores for job in alone], float)
    assert np.allclose(scores, np.array([each.scores for each in together.predictions], float), atol=1e-4)


def test_the_command_line_predicts_and_records(served: Served, tmp_path: Path) -> None:
    _, url, _ = served
    shown = modelyard("predict", "--digit", "3", "--worker", "2", "--url", url, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "MNIST_PyTorch_Model" in shown.stdout
    for _ in range(2):
        run = modelyard(
            "benchmark", "--n", "40", "--concurrency", "4", "--data", "digits", "--url", url, folder=tmp_path
        )
        assert run.returncode == 0, run.stderr
        assert "predicting" not in run.stderr  # the progress bar
        assert "figure\tworker 2\nmodel version\tMNIST_PyTorch_Model 2\nsucceeded\t40 of 40\n" in run.stdout
    records = json.loads((tmp_path / "worker_benchmark_records.json").read_text())
    assert len(records) == 80
    assert {record["status"] for record in records} == {"succeeded"}
    assert (tmp_path / "worker_benchmark_latency.png").read_bytes().startswith(b"\x89PNG")
    refused = modelyard("predict", "--worker", "9", "--url", url, folder=tmp_path)
    assert refused.returncode == 1
    assert "known numbers" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_documentation_page_shows_every_endpoint_without_a_network(
    served: Served, system_tool: Callable[[str, str], str], tmp_path: Path
) -> None:
    _, url, _ = served
    page = subprocess.run(
        [
            system_tool("chromium", "chromium"),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            f"{url}/docs",
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    for path in ("/predict", "/results/", "/workers", "/metrics", "/healthz", "/readyz"):
        assert f'data-path="{path}' in page
