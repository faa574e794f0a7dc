"""`POST /batches` on a real pool: a controller that is killed in the middle, and the one that continues."""

from __future__ import annotations

import asyncio
import io
import json
import re
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.api_keys import new_key
from modelyard import AsyncClient, Client
from modelyard.calls import BatchOptions
from modelyard.errors import BatchWithoutOutputError, UnknownBatchError
from modelyard.schemas import BatchFile
from tests.e2e.conftest import Digits, Pool

Served = tuple[Pool, str, Client]
N_ROWS, BAD, MOST_BYTES = 150, 7, 100_000
SLOW = "20/second"  # so that the first controller cannot end the batch before it is killed
ASKED: BatchOptions = {"version": 2, "rows": 1, "idempotency_key": "once"}


def test_a_batch_is_continued_by_the_next_controller_and_is_its_owners_alone(
    served: Served, digits: Digits, tmp_path: Path
) -> None:
    pool, _, operator = served
    source, output = tmp_path / "rows.ndjson", tmp_path / "out.ndjson"
    rows = [digits.images[place].round(4).ravel().tolist() for place in range(N_ROWS)]
    source.write_text("".join(f"{'oops' if place == BAD else row}\n" for place, row in enumerate(rows)))
    (key, ann), (other_key, bob) = (new_key(name, "predict") for name in ("ann", "bob"))
    operator_key, carl = new_key("carl", "operate")
    pool.environment |= {
        "MODELYARD_BATCH_FOLDER": str(tmp_path / "batches"),
        "MODELYARD_API_KEYS": f"{ann.line()},{bob.line()},{carl.line()}",
        "MODELYARD_BATCH_MAX_OUTPUT_BYTES": str(MOST_BYTES),
        "MODELYARD_RATE_LIMIT": SLOW,
    }
    try:
        first = pool.controller()
        with Client(first, api_key=key) as client, Client(first, api_key=other_key) as other:
            batch = client.submit_batch(source, **ASKED)
            with pytest.raises(UnknownBatchError):
                other.cancel_batch(batch.id)
            pool.wait_until(lambda: client.read_batch(batch.id).rows_done > BAD, timeout_s=60)
            with pytest.raises(BatchWithoutOutputError, match="running"):
                client.save_batch(batch.id, output)
        killed = pool.serving(first)
        killed.kill()
        killed.wait(10)
        pool.processes.remove(killed)
        part = tmp_path / "batches" / batch.id / "output.ndjson.part"
        finished = [json.loads(line) for line in part.read_bytes().splitlines()[1:-1]]
        del pool.environment["MODELYARD_RATE_LIMIT"]
        second = pool.controller()
    finally:
        pool.environment.clear()
    ended = asyncio.run(in_whole(second, key, source, output))
    assert (ended.status, ended.rows_done, ended.rows_failed) == ("succeeded", N_ROWS, 1)
    assert ended.id == batch.id, "a repeated post gets the first batch"
    with Client(second, api_key=key) as client:
        client.save_batch(batch.id, tmp_path / "bad.ndjson", errors=True)
        assert client.batch(source, tmp_path / "again.ndjson", **ASKED) == ended
    assert (tmp_path / "bad.ndjson").read_bytes() == (tmp_path / "out.bad.ndjson").read_bytes()
    assert (tmp_path / "again.ndjson").read_bytes() == output.read_bytes()
    answered = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["row"] for each in answered] == list(range(N_ROWS))
    assert {each["model_version"] for each in answered} == {2, None}
    expected = [*operator.predict(digits.images[:N_ROWS], version=2).classes.tolist()]
    assert [each["class"] for each in answered] == [
        None if place == BAD else one for place, one in enumerate(expected)
    ]
    kept = [each["latency_ms"] for each in answered[: len(finished)]]
    assert kept == [each.get("latency_ms") for each in finished], "finished rows are not predicted again"
    assert json.loads((tmp_path / "bad.ndjson").read_text())["row"] == BAD
    told = r'^modelyard_batch_file_rows_total{outcome="predicted"} [1-9]'
    headers = {"authorization": f"Bearer {operator_key}"}
    pool.wait_until(lambda: bool(re.search(told, httpx.get(f"{second}/metrics", headers=headers).text, re.M)))
    source.write_text("".join(f"{rows[0]}\n" for _ in range(600)))
    with Client(second, api_key=key) as client:
        larger = client.submit_batch(source, version=2)
        larger = client.read_batch(larger.id, wait_s=60)
        pictures = client.batch(
            zipped(digits, tmp_path / "digits.zip"), tmp_path / "classes.ndjson", version=2
        )
    assert (larger.status, larger.error and larger.error.code) == ("failed", "batch_output_too_large")
    assert (pictures.rows_done, pictures.rows_failed) == (3, 1)
    classes = [json.loads(line) for line in (tmp_path / "classes.ndjson").read_text().splitlines()]
    assert [(each["file"], each["class"]) for each in classes] == [
        ("a/0.png", expected[0]),
        ("a/1.png", expected[1]),
        ("b.png", None),
    ]
    pool.stop(pool.serving(second))


def zipped(digits: Digits, path: Path) -> Path:
    """An archive of two digits and a damaged image."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.png", b"no image")
        for place in (1, 0):
            file = io.BytesIO()
            Image.fromarray((digits.images[place, 0] * 255).astype("uint8")).save(file, "png")
            archive.writestr(f"a/{place}.png", file.getvalue())
        archive.writestr("readme.txt", "")
    return path


async def in_whole(url: str, key: str, source: Path, output: Path) -> BatchFile:
    async with AsyncClient(url, api_key=key) as client:
        return await client.batch(source, output, **ASKED)
