from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from app.server_errors import ParameterError, UnknownWorkerError
from modelyard import AsyncClient, RetryPolicy
from modelyard.benchmark import Benchmark
from modelyard.client_errors import ControllerUnreachableError, JobFailedError
from modelyard.commands.benchmark_command import command as benchmark
from modelyard.commands.predict_command import command as predict
from modelyard.picture import half_blocks
from modelyard.plot import draw_latencies
from modelyard.records import Record, append_records
from modelyard.samples import drawn_digits, dummies, heldout_digit
from modelyard.summary import by_worker, summarise

if TYPE_CHECKING:
    from tests.client.conftest import ControllerDouble

IMPATIENT = RetryPolicy(attempts=1)


def record(latency_ms: float = 1.0, **fields: object) -> Record:
    given = {"timestamp": "2026-01-02T03:04:05.678+00:00", "status": "succeeded", "worker": 1} | fields
    return Record(client_latency_ms=latency_ms, **given)  # type: ignore[arg-type]


async def measured(url: str, n: int = 8, worker: int | None = None, concurrency: int = 3) -> list[Record]:
    records: list[Record] = []
    samples = dummies(n, seed=0)
    run = Benchmark(lambda: AsyncClient(url, retry=IMPATIENT), samples, options={"worker": worker})
    await run.run(concurrency, records.append)
    assert records == run.records
    return records


async def test_every_sample_is_sent_once_and_recorded(url: str, double: ControllerDouble) -> None:
    before = datetime.now(UTC)
    records = await measured(url, n=8, worker=2)
    assert len(records) == len(double.jobs) == 8
    assert {one.job_id for one in records} == set(double.jobs)
    for one in records:
        sent_at = datetime.fromisoformat(one.timestamp)
        assert before - timedelta(milliseconds=1) <= sent_at <= datetime.now(UTC)
        assert (one.worker, one.model_version, one.val_accuracy) == (2, 2, 0.92)
        assert (one.inference_ms, one.queue_wait_ms, one.end_to_end_ms) == (0.5, 1.5, 3.0)
        assert (one.status, one.error, one.true_label) == ("succeeded", None, None)
        assert one.client_latency_ms > 0


async def test_refused_and_failed_requests_are_records_too(url: str, double: ControllerDouble) -> None:
    double.outcome = "failed"
    double.refuse(429, "queue_full")
    double.refuse(503, "no_candidate")
    records = await measured(url, n=4, concurrency=1)
    assert [one.status for one in records] == ["refused", "refused", "failed", "failed"]
    assert [one.error for one in records] == ["queue_full", "no_candidate", "model_failed", "model_failed"]
    assert records[0].job_id is None
    assert records[2].job_id is not None


async def test_refusal_that_holds_for_every_sample_ends_the_run(url: str, double: ControllerDouble) -> None:
    with pytest.raises(UnknownWorkerError):
        await measured(url, n=50, worker=9)
    assert len(double.requests) < 10


def test_summary_counts_only_what_succeeded() -> None:
    records = [record(float(ms), predicted=ms % 2, true_label=1) for ms in range(1, 101)]
    records += [record(9999.0, status="failed"), record(9999.0, status="refused", worker=None)]
    summary = summarise(records, duration_s=2.0)
    assert (summary.n_requests, summary.n_succeeded) == (102, 100)
    assert summary.p50_ms == 50.5
    assert summary.p99_ms == pytest.approx(99.01)
    assert summary.max_ms == 100
    assert summary.throughput_per_s == 50
    assert summary.accuracy == 0.5
    assert list(by_worker(records)) == [1, None]


def test_summary_of_nothing_has_no_latency() -> None:
    summary = summarise([], duration_s=0.0)
    assert (summary.p50_ms, summary.accuracy, summary.throughput_per_s) == (None, None, 0.0)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(status="refused", worker=None)],
        [record(0.0)],
        [record(5.0)],
        [record(float(ms), worker=worker) for worker in range(1, 11) for ms in (1, 2, 900)],
    ],
    ids=["nothing", "no success", "zero", "one", "ten workers, outliers"],
)
def test_every_run_can_be_drawn(tmp_path: Path, records: list[Record]) -> None:
    draw_latencies(records, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_drawn_digits_come_all_once_before_any_comes_twice() -> None:
    once = drawn_digits(359, seed=1)
    assert len(np.unique(once.images.reshape(359, -1), axis=0)) == 359
    assert len(drawn_digits(1000, seed=1)) == 1000
    np.testing.assert_array_equal(drawn_digits(50, seed=1).images, drawn_digits(50, seed=1).images)


def test_held_out_digit_is_chosen_by_index_or_at_random() -> None:
    index, image, label = heldout_digit(3)
    assert index == 3
    assert image.shape == (1, 1, 28, 28)
    assert image.dtype == np.float32
    assert heldout_digit(3)[2] == label
    assert 0 <= heldout_digit(None)[2] <= 9
    for absent in (-1, 10**6):
        with pytest.raises(ParameterError, match="choose 0 to"):
            heldout_digit(absent)


def test_digit_is_drawn_without_its_margin() -> None:
    sample = np.zeros((1, 1, 28, 28), dtype=np.float32)
    sample[0, 0, 10:13, 8:10] = 1
    assert half_blocks(sample) == "██\n▀▀"
    assert half_blocks(np.zeros((28, 28), dtype=np.float32)) == ""


def run_benchmark(url: str, folder: Path, *options: str) -> str:
    files = ["--output", str(folder / "records.json"), "--plot", str(folder / "plot.png")]
    run = CliRunner().invoke(benchmark, ["--url", url, *files, *options], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.output


def test_benchmark_command_records_draws_and_sums_up(
    tmp_path: Path, url: str, double: ControllerDouble
) -> None:
    output = run_benchmark(url, tmp_path, "--n", "12", "--concurrency", "4", "--data", "digits")
    assert "12 of 12" in output
    run_benchmark(url, tmp_path, "--n", "3", "--worker", "2")
    records = json.loads((tmp_path / "records.json").read_text())
    assert [one["worker"] for one in records] == [1] * 12 + [2] * 3
    assert all(one["true_label"] is not None for one in records[:12])
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_benchmark_command_sends_the_rows_of_a_file_and_tells_programs(
    tmp_path: Path, url: str, double: ControllerDouble
) -> None:
    np.save(tmp_path / "rows.npy", np.full((3, 1), 0.4, np.float32))
    words = ["--n", "7", "--data", str(tmp_path / "rows.npy"), "--json"]
    files = ["--output", str(tmp_path / "records.json"), "--plot", str(tmp_path / "plot.png")]
    told = json.loads(CliRunner().invoke(benchmark, ["--url", url, *words, *files]).stdout)
    assert (told["n_succeeded"], told["workers"][0]["served_by"]) == (7, "MNIST_PyTorch_Model 1")
    assert {one["predicted"] for one in json.loads((tmp_path / "records.json").read_text())} == {4}


def test_benchmark_command_keeps_an_unreadable_file_aside(
    tmp_path: Path, url: str, double: ControllerDouble
) -> None:
    (tmp_path / "records.json").write_text("half a rec")
    assert "it is kept as" in run_benchmark(url, tmp_path, "--n", "1")
    (kept_aside,) = tmp_path.glob("records.unreadable-*.json")
    assert kept_aside.read_text() == "half a rec"


def test_benchmark_command_without_a_controller_makes_no_file(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ControllerUnreachableError):
            run_benchmark(url, tmp_path)
    assert not list(tmp_path.iterdir())


def test_benchmark_command_keeps_the_records_of_a_run_that_breaks_off(
    tmp_path: Path, url: str, double: ControllerDouble
) -> None:
    append_records(tmp_path / "records.json", [record()])
    double.refuse_after(5, 404, "model_unknown")
    with pytest.raises(Exception, match="no"):
        run_benchmark(url, tmp_path, "--n", "20", "--data", "dummy")
    assert len(json.loads((tmp_path / "records.json").read_text())) == 1 + 4


def run_predict(url: str, *arguments: str) -> str:
    run = CliRunner().invoke(predict, [*arguments, "--url", url], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.output


def test_predict_command_shows_digit_truth_version_and_time(url: str, double: ControllerDouble) -> None:
    output = run_predict(url, "--digit", "5", "--worker", "2")
    assert "held-out digit 5" in output
    assert f"true label  {heldout_digit(5)[2]}" in output
    assert "MNIST_PyTorch_Model version 2, val_accuracy 0.9200" in output
    assert "2, as asked" in output
    assert "3 ms end to end" in output
    assert "█" in output


def test_predict_command_sends_an_image(url: str, double: ControllerDouble, tmp_path: Path) -> None:
    picture = np.full((28, 28), 255, dtype=np.uint8)
    picture[14, 14] = 255 - round(0.7 * 255)
    Image.fromarray(picture).save(tmp_path / "[red]seven.png")
    output = run_predict(url, str(tmp_path / "[red]seven.png"))
    assert "[red]seven.png" in output
    assert "confidence 100.0%" in output
    assert "true label" not in output


def test_predict_command_writes_a_line_for_each_fact_where_there_is_no_terminal(
    url: str, double: ControllerDouble, tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([[0.0] * 784]))
    output = run_predict(url, "--data", str(tmp_path / "rows.json"))
    facts = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    assert facts["by"] == "MNIST_PyTorch_Model version 1, val_accuracy 0.9100"
    assert facts["took"].endswith(" ms here, 3 ms end to end, 1.5 ms in the queue, 0.5 ms inference")


def test_predict_command_that_does_not_wait_says_where_the_result_will_be(
    url: str, double: ControllerDouble
) -> None:
    output = run_predict(url, "--wait", "0")
    (job_id,) = double.jobs
    assert "queued" in output
    assert f"result: {url}/results/{job_id}\n" in output


def test_predict_command_fails_when_the_job_does(url: str, double: ControllerDouble) -> None:
    double.outcome = "failed"
    with pytest.raises(JobFailedError):
        run_predict(url)


def test_predict_command_takes_an_image_or_a_digit_and_not_both(url: str) -> None:
    run = CliRunner().invoke(predict, ["image.png", "--digit", "1", "--url", url])
    assert run.exit_code == 2
    assert "give one of" in run.output
