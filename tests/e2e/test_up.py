"""`modelyard up` and `modelyard demo`, as a user starts and stops them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.api_keys import new_key
from app.server_errors import ForbiddenError, UnauthenticatedError
from cli.local_pool import leftovers
from modelyard import Client
from tests import light_registry
from tests.conftest import WaitUntil
from tests.light_registry import PAIR
from training.inventory import connect

START_S = 180.0


@dataclass(frozen=True)
class Keys:
    """API keys of a pool, and what of them its processes are given."""

    shop: str
    operator: str
    variables: dict[str, str]

    def secrets(self) -> list[str]:
        """What must stand in no log and on no command line."""
        return [self.shop, self.operator, self.variables["FLOWER_BASIC_AUTH"].split(":")[1]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (shop, shop_line), (operator, operator_line) = new_key("shop", "predict"), new_key("ops", "operate")
    file = tmp_path / "keys"
    file.write_text(f"{shop_line.line()}\n{operator_line.line()}\n")
    login = {"FLOWER_BASIC_AUTH": "ops:flower-secret-of-this-test"}
    return Keys(shop, operator, {"MODELYARD_API_KEYS_FILE": str(file)} | login)


def logs_of(environment: dict[str, str]) -> str:
    state = Path(environment["MODELYARD_STATE_DIR"])
    patterns = ("logs/*", "*.conf", "*.json", "*.txt")
    return "\n".join(
        file.read_text()
        for folder in (state, state / "demo")
        for each in patterns
        for file in folder.glob(each)
    )


def modelyard(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=environment,
        cwd=environment["MODELYARD_STATE_DIR"],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


def processes_of(environment: dict[str, str]) -> list[str]:
    """Command lines of everything that runs with this state directory, or the demo's in it."""
    mark = f"MODELYARD_STATE_DIR={environment['MODELYARD_STATE_DIR']}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return found


@pytest.mark.timeout(300)
def test_up_serves_two_versions_refuses_a_second_pool_and_ctrl_c_leaves_nothing(
    environment: dict[str, str], keys: Keys, light: Path, wait_until: WaitUntil
) -> None:
    environment = environment | keys.variables | light_registry.variables(light)
    url = f"http://127.0.0.1:{environment['MODELYARD_PORT']}"
    command = [sys.executable, "-m", "cli", "up", "--no-views", "--versions", "2,1"]
    log = Path(environment["MODELYARD_STATE_DIR"]) / "up.txt"
    with log.open("wb") as output:
        up = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
    try:
        wait_until(lambda: b"Ctrl-C stops" in log.read_bytes() or up.poll() is not None, timeout_s=START_S)
        assert up.poll() is None, log.read_text()
        with Client(url, api_key=keys.operator) as client:
            assert [info.live_workers for info in client.workers()] == [1, 1]
            assert {info.worker: info.model_version for info in client.workers()} == {1: 1, 2: 2}
            pids = {info.worker: info.replicas[0].pid for info in client.workers()}
        running = leftovers.processes(log.parent)
        assert [each.name for each in running].count(
            "worker-Light-v1"
        ) == 3  # client, supervisor, serving process
        os.kill(next(each.pid for each in running if each.name == "fork-server"), signal.SIGKILL)
        os.kill(pids[1], signal.SIGKILL)
        told = b"worker-Light-v1 stopped and was restarted"
        wait_until(lambda: told in log.read_bytes(), timeout_s=START_S, what="it tells of a crash")
        with Client(url, api_key=keys.shop) as client:
            assert client.predict(PAIR, worker=1).model_version == 1
            with pytest.raises(ForbiddenError):
                client.workers()
        with Client(url) as client, pytest.raises(UnauthenticatedError):
            client.predict(PAIR)
        command_lines = "\n".join(processes_of(environment))
        assert "serve" in command_lines
        assert not any(secret in command_lines for secret in keys.secrets())
        second = modelyard(environment, "up")
        assert second.returncode == 1
        assert "a pool already runs" in second.stderr
    finally:
        up.send_signal(signal.SIGINT)
        status = up.wait(60)
    assert status == 0, log.read_text()
    assert processes_of(environment) == []
    assert not any(secret in logs_of(environment) for secret in keys.secrets())


@pytest.mark.timeout(300)
def test_up_serves_what_can_be_served_says_what_cannot_and_why_and_ends_if_that_is_all(
    own_state: dict[str, str], light: Path, wait_until: WaitUntil, tmp_path: Path
) -> None:
    shutil.copy(light / "mlruns.db", tmp_path / "mlruns.db")
    environment = own_state | light_registry.variables(tmp_path)
    registry = connect(environment["MLFLOW_TRACKING_URI"])
    registry.create_model_version(light_registry.MODEL, str(tmp_path / "nothing"))
    alone = modelyard(environment, "up", "--no-views", "--versions", "3")
    assert alone.returncode == 1
    assert "worker-Light-v3 stopped while it was starting" in alone.stderr
    log = tmp_path / "up.txt"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", "--no-views", "--versions", "2,3"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "Ctrl-C stops" in log.read_text() or up.poll() is not None, timeout_s=START_S)
        [told] = [line for line in log.read_text().splitlines() if "worker-Light-v3 cannot serve" in line]
        url = f"http://127.0.0.1:{environment['MODELYARD_PORT']}"

        def failing() -> dict[int, str]:
            return {
                row.model_version: row.start_failure.reason for row in client.workers() if row.start_failure
            }

        with Client(url) as client:
            assert client.predict(PAIR).model_version == 2
            wait_until(failing, what="the controller tells too")
            assert [*failing()] == [3]
            assert failing()[3] in told
            status = modelyard(environment, "status").stdout
            assert "failing" in status
            assert "does not start since" in status
            planned = modelyard(environment, "plan").stdout.splitlines()
            assert planned == ["= keep worker-Light-v2", "= keep worker-Light-v3"]
            more = modelyard(environment, "plan", "--replicas", "2").stdout.splitlines()
            assert [line for line in more if "start" in line] == [
                f"+ start worker-Light-v{version}-2: 2 of Light/{version} are wanted" for version in (2, 3)
            ]
            client.control("retire", light_registry.MODEL, 3)
            wait_until(lambda: not failing(), timeout_s=START_S, what="it is not wanted any more")
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0, log.read_text()


@pytest.mark.timeout(300)
def test_demo_serves_its_own_registry_whatever_is_exported_writes_records_and_ends(
    environment: dict[str, str], keys: Keys, tmp_path: Path
) -> None:
    state = Path(environment["MODELYARD_STATE_DIR"])
    own = state / "demo" / "mlruns.db"
    own.parent.mkdir()
    shutil.copy(environment["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"), own)
    mine = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mine.db",
        "REDIS_URL": "redis://127.0.0.1:1",
        "MODEL_NAME": "Mine",
    }
    environment = environment | keys.variables | {"MODELYARD_API_KEY": keys.operator} | mine
    demo = modelyard(environment, "demo", "--once")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    (told,) = [line for line in demo.stdout.splitlines() if " are not used" in line]
    assert all(name in told for name in mine)
    assert not (tmp_path / "mine.db").exists()
    assert "training" not in demo.stdout
    for name in (
        "redis",
        "controller",
        "worker-MNIST_PyTorch_Model-v1",
        "worker-MNIST_PyTorch_Model-v2",
        "flower",
        "mlflow",
    ):
        assert f"✓ {name} " in demo.stdout
    assert f":{environment['MLFLOW_PORT']}/#/models\n" in demo.stdout
    records = json.loads((state / "worker_benchmark_records.json").read_text())
    assert [record["true_label"] for record in records] == list(range(10))
    assert all(record["status"] == "succeeded" for record in records)
    assert {record["model_version"] for record in records} == {1, 2}
    assert sum(record["predicted"] == record["true_label"] for record in records) >= 8
    assert not any(secret in demo.stdout + demo.stderr + logs_of(environment) for secret in keys.secrets())
    assert processes_of(environment) == []


def test_up_that_would_let_strangers_in_is_one_line_and_starts_nothing(
    environment: dict[str, str], keys: Keys
) -> None:
    up = modelyard(environment | keys.variables | {"MLFLOW_HOST": "0.0.0.0"}, "up")
    assert up.returncode == 1
    assert "MLflow would listen" in up.stderr
    assert len(up.stderr.splitlines()) == 1
    assert processes_of(environment) == []


def test_version_that_does_not_exist_is_one_line_and_starts_nothing(environment: dict[str, str]) -> None:
    up = modelyard(environment, "up", "--versions", "1,9")
    assert up.returncode == 1
    assert "there is no version 9 of MNIST_PyTorch_Model" in up.stderr
    assert len(up.stderr.splitlines()) == 1
    assert processes_of(environment) == []


def test_taken_port_is_one_line_that_says_what_to_do(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["FLOWER_PORT"]))):
        up = modelyard(environment, "up")
    assert up.returncode == 1
    assert environment["FLOWER_PORT"] in up.stderr
    assert "FLOWER_PORT" in up.stderr
    assert len(up.stderr.splitlines()) == 1
