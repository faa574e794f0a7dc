"""No secret that a pool is configured with stands where others may read it: a whole real pool is searched for them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from app.api_keys import new_key
from app.settings import ControllerSettings
from cli.local_pool.programs import mlflow_service
from cli.local_pool.supervisord import config_text
from modelyard.commands.exit_status import UNAVAILABLE
from tests import light_registry
from tests.conftest import RedisServer, WaitUntil
from tests.e2e.conftest import answers

START_S = 150.0
OF_REDIS, OF_MLFLOW, OF_FLOWER = "redis-secret-k3Hq", "mlflow-secret-v8Zt", "flower-secret-m5Xw"
TOKEN = "header-secret-c7Lp"


@pytest.fixture
def mlflow_url(light: Path, free_port: Callable[[], int], wait_until: WaitUntil) -> Iterator[str]:
    """An MLflow server on a registry; it takes any user and password."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{light}/mlruns.db"],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(
            lambda: answers(f"http://127.0.0.1:{port}/health"), timeout_s=START_S, what="MLflow answers"
        )
        yield f"http://tracking:{OF_MLFLOW}@127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def command_lines(mark: str) -> str:
    """Of every process that has a variable in its environment, one a line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return "\n".join(found)


@pytest.mark.timeout(400)
def test_no_secret_of_a_pool_stands_in_an_answer_a_log_or_a_command_line(
    redis_server: RedisServer,
    light: Path,
    mlflow_url: str,
    free_port: Callable[[], int],
    wait_until: WaitUntil,
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.acl_setuser(
            "pool", enabled=True, passwords=[f"+{OF_REDIS}"], keys=["*"], channels=["*"], categories=["+@all"]
        )
    key, line = new_key("ops", "operate")
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as name:
        folder, port, flower_port = Path(name), free_port(), free_port()
        variables = {
            **light_registry.variables(light),
            "REDIS_URL": f"unix://pool:{OF_REDIS}@{redis_server.socket}",
            "MLFLOW_TRACKING_URI": mlflow_url,
            "MLFLOW_TRACKING_TOKEN": TOKEN,
            "FLOWER_BASIC_AUTH": f"ops:{OF_FLOWER}",
            "FLOWER_PORT": str(flower_port),
            "MODELYARD_API_KEYS": line.line(),
            "MODELYARD_API_KEY": key,
            "MODELYARD_PORT": str(port),
            "MODELYARD_STATE_DIR": name,
        }
        log = folder / "up.txt"
        with log.open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-m", "cli", "up", "--versions", "1"],
                env=os.environ | variables,
                cwd=folder,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(
                lambda: b"Ctrl-C stops" in log.read_bytes() or up.poll() is not None, timeout_s=START_S
            )
            assert up.poll() is None, log.read_text()
            seen = {"command lines": command_lines(f"MODELYARD_STATE_DIR={name}\0")}
            assert seen["command lines"].count("\n") >= 4
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": key}, timeout=20
            ) as http:
                http.headers["authorization"] = f"Bearer {key}"
                for path in (
                    "/workers",
                    "/metrics",
                    "/readyz",
                    "/predict?worker=9",
                    "/results/none",
                    "/openapi.json",
                ):
                    answer = http.post(path) if "predict" in path else http.get(path)
                    seen[path] = f"{answer.headers}{answer.text}"
            assert "http://***@127.0.0.1" in seen["/workers"]
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)
            with redis.Redis.from_url(redis_server.url) as client:
                client.acl_deluser("pool")
        seen |= {str(each): each.read_text(errors="replace") for each in folder.rglob("*") if each.is_file()}
        assert any(f"worker-{light_registry.MODEL}-v" in each for each in seen)
        secrets = (OF_REDIS, OF_MLFLOW, OF_FLOWER, TOKEN, key)
        assert [(where, each) for where, text in seen.items() for each in secrets if each in text] == []
        assert stat.S_IMODE((folder / "supervisord.conf").stat().st_mode) == 0o600


@pytest.mark.parametrize("command", [["workers"], ["cli", "up"]], ids=lambda each: each[-1])
def test_no_message_about_a_registry_that_does_not_answer_holds_its_password(
    redis_server: RedisServer, command: list[str], tmp_path: Path
) -> None:
    variables = {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": f"http://tracking:{OF_MLFLOW}@127.0.0.1:1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MODELYARD_STATE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == (1 if command == ["workers"] else UNAVAILABLE)
    assert "http://***@127.0.0.1:1" in done.stderr
    assert OF_MLFLOW not in done.stdout + done.stderr


def test_the_database_of_the_pools_mlflow_server_is_on_no_command_line_and_in_no_file() -> None:
    uri = f"postgresql://mlflow:{OF_MLFLOW}@db.internal/mlflow"
    service = mlflow_service(ControllerSettings(mlflow_tracking_uri=uri))
    assert OF_MLFLOW not in config_text([service])
    assert service.secrets == {"MLFLOW_BACKEND_STORE_URI": uri}
