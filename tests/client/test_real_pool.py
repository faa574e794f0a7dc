"""The client with a real pool: what it sends arrives exactly, large inputs are cut, and errors are clear."""

from __future__ import annotations

import base64
import os
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
import pytest
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
from modelyard.errors import (
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
    job = client.predict(many, model="Same")
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
