"""The client with a real pool: what it sends arrives exactly, large inputs are cut, and errors are clear."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from modelyard import (
    AsyncClient,
    Body,
    Client,
    JobFailedError,
    JoinedJob,
    OutputsNotJoinableError,
    RetryPolicy,
)
from modelyard.commands.main import cli
from modelyard.errors import (
    InputError,
    InputNotFiniteError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    ParamsError,
    TooLargeError,
    UnknownModelError,
)
from tests.conftest import running_redis, wait_until_true

MAX_SAMPLES, MAX_BODY_BYTES = 8, 4096
TIMES = np.array(["2026-01-31T12:00:00.123456789", "1999-12-31"], "M8[ns]")
TABLE = pd.DataFrame(
    {
        "n": np.array([2**62 + 1, -5], np.int64),
        "x": [0.1, np.nan],
        "t": ["ä", None],
        "b": [b"\x00\xff", b""],
        "at": TIMES,
        "ok": [True, False],
    }
)


def models() -> dict[str, tuple[Any, ModelSignature]]:
    """`Same` answers its rows, with times as nanoseconds; `Blocks` answers its tensor, or its sum alone."""

    class Same(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input.assign(at=model_input["at"].astype("int64"))

    class Blocks(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            block = model_input["x"]
            if block.max() > 1000:
                raise ValueError("too bright")
            is_summed = params and params["sum"]
            return block.sum().reshape(1) if is_summed else {"same": block, "rows": block[:, 0, 0]}

    return {"Same": (Same(), COLUMNS), "Blocks": (Blocks(), TENSORS)}


COLUMNS = ModelSignature(
    Schema(
        [
            ColSpec(DataType.long, "n"),
            ColSpec(DataType.double, "x"),
            ColSpec(DataType.string, "t"),
            ColSpec(DataType.binary, "b"),
            ColSpec(DataType.datetime, "at"),
            ColSpec(DataType.boolean, "ok"),
        ]
    )
)
TENSORS = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 2, -1), "x")]),
    params=ParamSchema([ParamSpec("sum", DataType.boolean, False)]),
)


def register(folder: Path, database: Path) -> str:
    uri = f"sqlite:///{folder}/mlruns.db"
    shutil.copy(database, folder / "mlruns.db")
    registry = mlflow.MlflowClient(uri)
    for name, (model, signature) in models().items():
        mlflow.pyfunc.save_model(
            folder / name, python_model=model, signature=signature, pip_requirements=["numpy"]
        )
        registry.create_registered_model(name)
        registry.create_model_version(name, str(folder / name))
        registry.set_registered_model_alias(name, "champion", "1")
    return uri


@pytest.fixture(scope="module")
def url(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[str]:
    """A controller and a worker of each model, as processes of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, of models without type hints
        uri = register(tmp_path_factory.mktemp("registry"), empty_database)
    port = free_port()
    with running_redis() as server:
        shared = os.environ | {
            "REDIS_URL": server.url,
            "MLFLOW_TRACKING_URI": uri,
            "MODELYARD_ALLOW_PICKLE_MODELS": "true",
            "MODELYARD_MAX_SAMPLES": str(MAX_SAMPLES),
            "MODELYARD_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
            "MODELYARD_ALLOW_NON_FINITE": "true",
            "MODELYARD_LAME_DUCK_S": "0",
        }
        commands = [["cli", "serve", "--port", str(port)], ["workers"], ["workers"]]
        named: list[dict[str, str]] = [
            {},
            *({"MODEL_NAME": each, "MODEL_VERSION": "1"} for each in ("Same", "Blocks")),
        ]
        processes = [
            subprocess.Popen([sys.executable, "-m", *command], env=shared | own, stderr=subprocess.DEVNULL)
            for command, own in zip(commands, named, strict=True)
        ]
        try:
            with Client(f"http://127.0.0.1:{port}", retry=RetryPolicy(attempts=1)) as client:
                wait_until_true(lambda: ready_versions(client, processes) == 2, 90, "the workers are ready")
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


def ready_versions(client: Client, processes: list[subprocess.Popen[bytes]]) -> int:
    assert all(process.poll() is None for process in processes)
    try:
        return sum(each.live_workers > 0 for each in client.workers())
    except ModelyardError:
        return 0


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


def test_a_table_arrives_with_every_digit_and_comes_back(client: Client) -> None:
    job = client.predict(TABLE, model="Same")
    encoded = base64.b64encode(b"\x00\xff").decode()
    first, second = TIMES.astype(np.int64).tolist()
    assert job.outputs == [
        {"n": 2**62 + 1, "x": 0.1, "t": "ä", "b": encoded, "at": first, "ok": True},
        {"n": -5, "x": None, "t": None, "b": "", "at": second, "ok": False},
    ]
    frame = job.to_frame()
    assert frame["n"].tolist() == TABLE["n"].tolist()
    columns = {name: TABLE[name].tolist() for name in ("n", "x", "t", "b", "ok")} | {"at": TIMES}
    assert client.predict(columns, model="Same@champion").outputs == job.outputs


def test_tensors_keep_their_dtype_and_take_params(client: Client) -> None:
    block = np.random.default_rng(0).random((3, 2, 5), np.float32)
    for samples in ({"x": block}, block):
        job = client.predict(samples, model="Blocks", version="champion")
        answered = job.to_numpy()
        assert isinstance(answered, dict)
        assert {each.dtype.name for each in answered.values()} == {"float32"}
        np.testing.assert_array_equal(answered["same"], block)
    [total] = client.predict({"x": block}, params={"sum": True}, model="Blocks").to_numpy()
    assert float(total) == pytest.approx(float(block.sum()))


def test_what_is_larger_than_a_request_may_be_is_cut_and_joined_in_order(client: Client, url: str) -> None:
    many = pd.concat([TABLE.assign(n=place) for place in range(30)], ignore_index=True)
    job = client.predict(many, endpoint="Same")  # the parts after the first name its version instead
    assert isinstance(job, JoinedJob)
    assert job.to_frame()["n"].tolist() == many["n"].tolist()
    assert len(job.parts) == -(-len(many) // MAX_SAMPLES)
    wide = np.arange(6 * 2 * 150, dtype=np.float32).reshape(6, 2, 150) / 2000  # 1.2 kB a row
    with Client(url) as fresh:  # which does not know the limits yet
        submitted = fresh.submit(wide, model="Blocks", idempotency_key="wide")
        assert isinstance(submitted, JoinedJob)
        joined = fresh.wait(submitted)
        again = fresh.submit(wide, model="Blocks", idempotency_key="wide")
    assert isinstance(joined, JoinedJob)
    assert isinstance(again, JoinedJob)
    assert [part.id for part in again.parts] == [part.id for part in joined.parts]
    assert client.result(again).outputs == client.wait(again).outputs == joined.outputs
    assert max(joined.part_rows) * 1200 < MAX_BODY_BYTES
    answered = joined.to_numpy()
    assert isinstance(answered, dict)
    np.testing.assert_array_equal(answered["same"], wide)
    with pytest.raises(OutputsNotJoinableError, match="does not answer a row for each row"):
        client.predict(wide[:, :, :25], params={"sum": True}, model="Blocks")
    with pytest.raises(TooLargeError, match="4096 bytes"):
        client.predict(np.zeros((1, 2, 10_000), np.float32), model="Blocks")


async def test_many_inputs_are_mapped_in_both_clients(client: Client, url: str) -> None:
    blocks = np.arange(20 * 2 * 3, dtype=np.float32).reshape(20, 1, 2, 3)
    jobs = list(client.map(blocks, model="Blocks", version=1))
    np.testing.assert_array_equal([job.outputs["same"] for job in jobs], blocks)
    async with AsyncClient(url) as other:
        pairs = [each async for each in other.map_unordered(blocks, model="Blocks", version=1)]
    for place, job in pairs:
        np.testing.assert_array_equal(job.outputs["same"], blocks[place])
    assert len(pairs) == len(blocks)


def test_the_example_of_each_version_can_be_posted(client: Client) -> None:
    for worker in client.workers():
        assert worker.aliases == ("champion",)
        job = client.predict(Body(worker.example), worker=worker.worker)
        assert (job.model_name, job.status) == (worker.model_name, "succeeded")


@pytest.mark.parametrize(
    ("samples", "options", "error", "text"),
    [
        (TABLE.assign(n=1.5), {"model": "Same"}, InputTypeError, "row 0, column 'n': got 1.5"),
        (TABLE.drop(columns="ok"), {"model": "Same"}, InputShapeError, "'ok' is missing"),
        (
            TABLE.assign(at=TIMES.astype(str)[0] + "Z"),
            {"model": "Same"},
            InputTypeError,
            "a time without offset",
        ),
        (
            np.full((1, 2, 1), np.nan),
            {"model": "Blocks"},
            InputNotFiniteError,
            "expected finite|finite numbers",
        ),
        (np.zeros((1, 3, 1)), {"model": "Blocks"}, InputShapeError, "float32 of shape"),
        (
            np.zeros((1, 2, 1)),
            {"model": "Blocks", "params": {"sun": True}},
            ParamsError,
            "no parameter 'sun'",
        ),
        (np.zeros((1, 2, 1)), {"model": "Block"}, UnknownModelError, "known models: Blocks, Same"),
        (np.zeros((1, 2, 1)), {"model": "Blocks@champ"}, UnknownModelError, "known aliases: champion"),
        (np.full((1, 2, 1), 2000.0), {"model": "Blocks"}, JobFailedError, "failed on this input"),
    ],
)
def test_every_error_says_what_was_wrong(
    client: Client, samples: Any, options: Any, error: type[ModelyardError], text: str
) -> None:
    with pytest.raises(error, match=text):
        client.predict(samples, **options)


def batch(url: str, *words: object, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["batch", *map(str, words), "--url", url])
    assert done.exit_code == status, (done.output, done.exception)
    return done


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


MOST_ROWS = 1024  # of a request, by default
ROW = {"n": 0, "x": 0.5, "t": "ä, ö", "b": "AP8=", "at": "2026-01-31T12:00:00.123456789", "ok": True}


def test_a_batch_writes_a_row_for_each_row_and_sets_bad_ones_aside(url: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [ROW | {"n": place} for place in range(60)]
    rows[7]["n"], rows[45]["at"] = "seven", "yesterday"
    source, output = write_csv(tmp_path / "rows.csv", rows), tmp_path / "out.csv"
    words = (source, "--output", output, "--model", "Same")
    assert "2 were set aside" in batch(url, *words, "--rows", 30, status=1).stdout
    answered = read_csv(output)
    assert [int(row["row"]) for row in answered] == list(range(60))
    assert [row["n"] for row in answered] == [
        str(row["n"]) if row["n"] != "seven" else "" for row in rows[:45]
    ] + ["" if place == 45 else str(place) for place in range(45, 60)]
    assert {row["model_version"] for row in answered} == {"1", ""}
    assert float(answered[0]["latency_ms"]) > 0
    assert answered[0]["t"] == "ä, ö"
    bad = [json.loads(line) for line in (tmp_path / "out.bad.ndjson").read_text().splitlines()]
    assert [(each["row"], each["code"]) for each in bad] == [
        (7, "input_wrong_type"),
        (45, "input_wrong_type"),
    ]
    assert bad[1]["reason"].startswith("row 45, column 'at': got 'yesterday'")
    assert "--restart" in batch(url, *words, status=2).stderr
    assert {each.name for each in tmp_path.iterdir()} == {"rows.csv", "out.csv", "out.bad.ndjson"}


def test_a_batch_sends_no_more_rows_in_a_request_than_the_controller_takes(url: str, tmp_path: Path) -> None:
    n_rows = 2 * MOST_ROWS + 100
    block = np.zeros((n_rows, 2, 3), np.float32)
    block[-1] = 2000  # the model fails on this row
    np.savez_compressed(tmp_path / "rows.npz", x=block, y=block)
    output = tmp_path / "out.csv"
    words = (tmp_path / "rows.npz", "--output", output, "--model", "Blocks", "--rows", MOST_ROWS + 200)
    batch(url, *words, status=1)
    assert [int(row["row"]) for row in read_csv(output)] == list(range(n_rows))
    [bad] = (tmp_path / "out.bad.ndjson").read_text().splitlines()
    assert json.loads(bad)["row"] == n_rows - 1


@pytest.mark.parametrize("name", ["out.ndjson", "out.parquet"])
def test_a_batch_without_room_for_its_output_names_it_and_continues_later(
    url: str, tmp_path: Path, name: str
) -> None:
    source = write_csv(tmp_path / "rows.csv", [ROW | {"n": place} for place in range(600)])
    words = [str(source), "--output", str(tmp_path / name), "--model", "Same", "--rows", "10"]
    limited = subprocess.run(
        # -B: Python keeps the part of a module's bytecode that fits the limit, and no process could import it again.
        [sys.executable, "-B", "-m", "modelyard", "batch", *words, "--url", url],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (limited.returncode, limited.stdout) == (1, "")
    assert re.fullmatch(
        rf"modelyard: .*/{name}: File too large; [\d,]+ rows are finished; the same command continues\n",
        limited.stderr,
    )
    assert {each.name for each in tmp_path.iterdir()} == {"rows.csv", f"{name}.part"}
    assert "of them earlier" in batch(url, *words).stdout


def test_a_row_that_the_model_fails_on_is_found_by_halving(url: str, tmp_path: Path) -> None:
    block = np.zeros((40, 2, 3), np.float32)
    block[35] = 2000
    np.savez_compressed(tmp_path / "rows.npz", x=block, y=block)
    np.save(tmp_path / "rows.npy", block)
    for name in ("rows.npz", "rows.npy"):
        output = tmp_path / f"{name}.ndjson"
        told = json.loads(
            batch(url, tmp_path / name, "--output", output, "--model", "Blocks", "--json", status=1).stdout
        )
        assert (told["rows"], told["predicted"], told["set_aside"]) == (40, 39, 1)
        answered = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["same"] is None for row in answered] == [place == 35 for place in range(40)]
        assert json.loads(Path(told["bad_rows"]).read_text())["code"] == "model_failed"


def test_parquet_and_ndjson_are_read_and_written_with_their_types(url: str, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(
        pd.concat([TABLE.assign(n=2**60 + place) for place in range(20)], ignore_index=True)
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=6)
    batch(url, tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet", "--endpoint", "Same")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column("n").to_pylist() == table.column("n").to_pylist()
    assert [str(found.schema.field(name).type) for name in ("n", "x", "ok")] == ["int64", "double", "bool"]
    lines = [json.dumps(ROW), "", "oops", json.dumps(ROW | {"x": float("nan")})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out.jsonl"
    batch(url, tmp_path / "rows.jsonl", "--output", output, "--model", "Same@champion", status=1)
    first, bad, last = map(json.loads, output.read_text().splitlines())
    assert (first["x"], bad["x"], last["x"], last["model_version"]) == (0.5, None, None, 1)


def test_a_batch_that_was_killed_continues_without_repeating_a_row(url: str, tmp_path: Path) -> None:
    n_rows = 300
    source = write_csv(tmp_path / "rows.csv", [ROW | {"n": place} for place in range(n_rows)])
    part, output = tmp_path / "out.csv.part", tmp_path / "out.csv"
    words = ("batch", source, "--output", output, "--model", "Same", "--rows", 1)
    slow = ("--url", url, "--concurrency", 1)
    process = subprocess.Popen([sys.executable, "-m", "cli", *map(str, (*words, *slow))])
    wait_until_true(
        lambda: part.exists() and part.read_bytes().count(b"\n") > 20, what="some rows are finished"
    )
    process.kill()
    process.wait(10)
    finished = [json.loads(line) for line in part.read_bytes().splitlines()[1:]]
    assert len(finished) < n_rows
    part.write_bytes(part.read_bytes() + b'{"row": 9999, "tor')
    told = json.loads(batch(url, *words[1:], "--json").stdout)
    assert told["rows_before"] == len(finished)
    answered = read_csv(output)
    assert [int(row["n"]) for row in answered] == list(range(n_rows))
    kept = [float(row["latency_ms"]) for row in answered[: len(finished)]]
    assert kept == [each["latency_ms"] for each in finished]


def test_what_no_version_takes_ends_a_batch_before_it_began(url: str, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", [{"a": 1}, {"a": 2}])
    words = ["batch", str(source), "--output", str(tmp_path / "out.csv"), "--url", url, "--model", "Same"]
    ended = CliRunner().invoke(cli, words).exception
    assert isinstance(ended, InputError)
    assert "none of the first 2 rows was predicted" in ended.detail
    assert {each.name for each in tmp_path.iterdir()} == {"rows.csv"}
