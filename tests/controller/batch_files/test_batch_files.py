"""What `POST /batches` accepts and refuses, on a controller in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.api_keys import new_key
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings
from controller.batch_files.batch_files import TRIES
from controller.batch_files.batch_folder import BatchFolder
from controller.main import create_app
from tests.controller.conftest import HandWorker, Serve, until

CSV = {"content-type": "text/csv"}
Hand = Callable[..., HandWorker]


@pytest.fixture
def batch_settings(tmp_path: Path, free_port: Callable[[], int]) -> dict[str, Any]:
    return {"batch_folder": tmp_path / "batches", "port": free_port()}  # nobody listens there


async def test_without_a_folder_files_are_refused(serve: Serve) -> None:
    controller = await serve()
    answer = await controller.http.post("/batches", content=b"x\n1\n", headers=CSV)
    assert (answer.status_code, answer.json()["code"]) == (404, "batches_off")
    assert "MODELYARD_BATCH_FOLDER" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "headers", "body", "status", "code"),
    [
        ("", {"content-type": "application/json"}, b"{}", 415, "unsupported"),
        ("", CSV | {"content-encoding": "gzip"}, b"x", 415, "unsupported"),
        ("", CSV, b"", 422, "input_empty"),
        ("", CSV, b"x" * 2000, 413, "request_too_large"),
        ("?output=xlsx", CSV, b"x\n1\n", 422, "parameter_invalid"),
        ("?params=3", CSV, b"x\n1\n", 422, "parameter_invalid"),
        ("?model=Unknown", CSV, b"x\n1\n", 404, "model_unknown"),
    ],
)
async def test_a_file_that_cannot_be_predicted_is_refused_and_leaves_nothing(
    serve: Serve,
    hand_worker: Hand,
    batch_settings: dict[str, Any],
    query: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    code: str,
) -> None:
    hand_worker()
    controller = await serve(**batch_settings, batch_max_bytes=1024)

    async def parts() -> AsyncIterator[bytes]:  # without a content length
        yield body

    for content in (body, parts()):
        answer = await controller.http.post(f"/batches{query}", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert list(batch_settings["batch_folder"].iterdir()) == []


async def test_a_repeated_post_gets_the_first_batch_which_can_be_cancelled_once(
    serve: Serve, hand_worker: Hand, batch_settings: dict[str, Any]
) -> None:
    hand_worker()
    (key, ann), (other, bob) = (new_key(name, "predict") for name in ("ann", "bob"))
    controller = await serve(**batch_settings, api_keys=f"{ann.line()},{bob.line()}")
    own, foreign = ({"authorization": f"Bearer {each}"} for each in (key, other))

    async def post(query: str = "", **headers: str) -> Any:
        named = own | CSV | {"idempotency-key": "once"} | headers
        return await controller.http.post(f"/batches{query}", content=b"x\n1\n", headers=named)

    first, again, conflict, others = await post(), await post(), await post("?rows=3"), await post(**foreign)
    assert first.status_code == 202
    assert first.headers["location"] == first.json()["batch_url"]
    assert again.json()["id"] == first.json()["id"] != others.json()["id"]
    assert conflict.json()["code"] == "idempotency_conflict"
    for header, ids in ((own, [first.json()["id"]]), (foreign, [others.json()["id"]])):
        listed = (await controller.http.get("/batches", headers=header)).json()["batches"]
        assert [each["id"] for each in listed] == ids
    url = first.json()["batch_url"]
    assert (await controller.http.get(url, headers=foreign)).json()["code"] == "batch_unknown"
    assert (await controller.http.get(url)).status_code == 401
    assert (await controller.http.get(f"{url}/output", headers=own)).json()["code"] == "batch_without_output"
    assert (await controller.http.delete(url, headers=own)).json()["status"] == "cancelled"
    assert (await controller.http.delete(url, headers=own)).json()["code"] == "batch_not_cancellable"
    assert (await controller.http.get(f"{url}?wait=5", headers=own)).json()["status"] == "cancelled"
    folder = batch_settings["batch_folder"] / first.json()["id"]
    await until(lambda: not (folder / "input.csv").exists(), "the rows are removed", 30)


async def test_controllers_of_one_folder_share_a_batch_and_one_of_them_works_on_it(
    serve: Serve, hand_worker: Hand, batch_settings: dict[str, Any]
) -> None:
    hand_worker()
    first, second = await serve(**batch_settings), await serve(**batch_settings)
    posted = (await first.http.post("/batches", content=b"x\n1\n", headers=CSV)).json()
    folder = BatchFolder(batch_settings["batch_folder"] / posted["id"])

    def is_held() -> bool:
        lock = folder.lock()
        if lock is not None:
            os.close(lock)
        return lock is None

    await until(is_held, "a process has it", 30)
    seen = (await second.http.get(posted["batch_url"])).json()
    # Nobody listens at its controller's port.
    assert (seen["id"], seen["status"]) == (posted["id"], "waiting")
    assert (await second.http.delete(posted["batch_url"])).json()["status"] == "cancelled"
    await until(lambda: not is_held(), "the process has ended", 30)
    assert (await first.http.get(posted["batch_url"])).json()["status"] == "cancelled"


async def test_a_process_that_dies_is_started_again_and_the_third_time_ends_its_batch(
    serve: Serve, hand_worker: Hand, batch_settings: dict[str, Any]
) -> None:
    hand_worker()
    controller = await serve(**batch_settings)
    url = (await controller.http.post("/batches", content=b"x\n1\n", headers=CSV)).json()["batch_url"]
    killed: set[int] = set()
    while len(killed) < TRIES:
        (pid,) = await until(lambda: batch_processes() - killed, "a process works on it", 30)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    ended = (await controller.http.get(f"{url}?wait=30")).json()
    assert (ended["status"], ended["error"]["code"]) == ("failed", "batch_process_ended")


def batch_processes() -> set[int]:
    """Processes of batches that this process has started."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread or process that has just ended
            for pid in (task / "children").read_text().split():
                if b"batch_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


async def test_a_damaged_file_is_a_failed_batch_that_says_why(
    serve: Serve, hand_worker: Hand, batch_settings: dict[str, Any]
) -> None:
    hand_worker()
    controller = await serve(**batch_settings)
    headers = {"content-type": "application/vnd.apache.parquet"}
    url = (await controller.http.post("/batches", content=b"PAR1", headers=headers)).json()["batch_url"]
    ended: dict[str, Any] = {"status": "waiting"}
    while ended["status"] in ("waiting", "running"):
        ended = (await controller.http.get(f"{url}?wait=30")).json()
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "input_invalid"
    assert ended["error"]["detail"].startswith("input.parquet cannot be read as Parquet")
    assert "output_url" not in ended


async def test_an_old_batch_is_removed(
    serve: Serve, hand_worker: Hand, batch_settings: dict[str, Any]
) -> None:
    hand_worker()
    controller = await serve(**batch_settings, batch_retention_s=0.1)
    posted = await controller.http.post("/batches", content=b"x\n1\n", headers=CSV)
    url = posted.json()["batch_url"]
    assert (await controller.http.delete(url)).status_code == 200
    await until(lambda: not any(batch_settings["batch_folder"].iterdir()), "nothing is left", 30)
    assert (await controller.http.get(url)).json()["code"] == "batch_unknown"


def test_a_folder_that_cannot_be_written_stops_the_controller_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="MODELYARD_BATCH_FOLDER"):
        create_app(ControllerSettings(batch_folder=tmp_path / "file" / "batches"))
