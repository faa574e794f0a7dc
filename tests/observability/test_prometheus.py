"""The real Prometheus, on `prometheus.yml`, scrapes a real controller and a real Flower."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from app.api_keys import new_key
from app.clock import PoolClock
from app.contract import TensorContract
from app.worker_record import assign_number
from tests.conftest import RedisServer, WaitUntil
from tests.observability.dashboards import queries
from tests.pool_samples import record
from workers.process.heartbeat import Heartbeat

CONFIG = Path(__file__).parents[2] / "prometheus.yml"
INTERVAL = "200ms"
HEARTBEAT_S = 0.5
START_S = 60.0
LOGIN = ("watcher", "flower-password-of-this-test")

Start = Callable[..., None]


@dataclass
class Prometheus:
    """A Prometheus server that scrapes the pool, asked through its HTTP API."""

    url: str
    http: httpx.Client

    def get(self, path: str, **query: str) -> Any:
        answer = self.http.get(f"{self.url}/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expression: str) -> float | None:
        """The one series of an instant query, or None if there is none."""
        results = self.get("query", query=expression)["result"]
        assert len(results) <= 1, results
        return float(results[0]["value"][1]) if results else None


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(command, **environment)` runs a process until the test ends."""
    with ExitStack() as stack:

        def run(command: list[str], **environment: str) -> None:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)

        yield run


@pytest.fixture
def worker(redis_server: RedisServer) -> Iterator[Heartbeat]:
    """What a worker tells the pool of itself. It takes nothing off its queue, so jobs stay where one can count."""
    told = record(3, val_accuracy=0.875, input=TensorContract("float32", (1, 28, 28)))
    with redis.Redis.from_url(redis_server.url) as client:
        assign_number(client, told.queue, told.worker)
        heartbeat = Heartbeat(client, told, PoolClock(), HEARTBEAT_S)
        heartbeat.start()
        heartbeat.batch_ended(done=1, failed=0, n_samples=1, inference_ms=0.5)
        heartbeat.batch_started("none")  # an idle worker that asks for no work would end this process
        yield heartbeat
        heartbeat.close()


@pytest.fixture(scope="module")
def operator() -> tuple[str, str]:
    """An operator's API key, and the line of it that the controller knows."""
    key, known = new_key("prometheus", "operate")
    return key, known.line()


@pytest.fixture
def controller(
    start: Start,
    http: httpx.Client,
    redis_server: RedisServer,
    worker: Heartbeat,
    operator: tuple[str, str],
    free_port: Any,
    wait_until: WaitUntil,
) -> str:
    """URL of a controller that sees the worker, and has API keys."""
    port = free_port()
    start(
        [sys.executable, "-m", "cli", "serve", "--port", str(port)],
        REDIS_URL=redis_server.url,
        MODELYARD_HEARTBEAT_S=str(HEARTBEAT_S),
        MODELYARD_API_KEYS=operator[1],
    )
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(http, f"{url}/readyz"), START_S, "the controller is ready")
    return url


@pytest.fixture
def flower(
    start: Start,
    http: httpx.Client,
    redis_server: RedisServer,
    operator: tuple[str, str],
    free_port: Any,
    wait_until: WaitUntil,
    tmp_path: Path,
) -> str:
    """URL of Flower, which has a login."""
    port, login = free_port(), tmp_path / "login"
    login.write_text(":".join(LOGIN) + "\n")
    start(
        [sys.executable, "-m", "cli", "flower"],
        REDIS_URL=redis_server.url,
        FLOWER_PORT=str(port),
        FLOWER_BASIC_AUTH_FILE=str(login),
        MODELYARD_API_KEYS=operator[1],
    )
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(http, f"{url}/healthcheck"), START_S, "Flower answers")
    return url


@pytest.fixture
def prometheus(
    start: Start,
    http: httpx.Client,
    controller: str,
    flower: str,
    system_tool: Callable[[str, str], str],
    tmp_path: Path,
    free_port: Any,
    wait_until: WaitUntil,
) -> Prometheus:
    """Prometheus on the project's configuration, but for the targets' addresses and a quicker pace."""
    program = system_tool("prometheus", "prometheus")
    text = CONFIG.read_text().replace("/run/secrets/prometheus-key", f"{tmp_path}/key")
    (tmp_path / "key").write_text("")
    for name, url in (("controller:9000", controller), ("flower:5555", flower)):
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', f'"{url.removeprefix("http://")}"')
    config = yaml.safe_load(text)
    config["global"] = dict.fromkeys(config["global"], INTERVAL)
    config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    start(
        [
            program,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
    )
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(http, f"{url}/-/ready"), START_S, "Prometheus is ready")
    return Prometheus(url, http)


def answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == 200
    except httpx.TransportError:
        return False


def health_of_rules(prometheus: Prometheus) -> set[str]:
    return {rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # it has just ended


def test_promtool_accepts_the_configuration(system_tool: Callable[[str, str], str]) -> None:
    done = subprocess.run(
        [system_tool("promtool", "prometheus"), "check", "config", "--syntax-only", str(CONFIG)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_the_pool_and_forgets_a_worker_that_is_gone(
    prometheus: Prometheus,
    http: httpx.Client,
    controller: str,
    flower: str,
    worker: Heartbeat,
    operator: tuple[str, str],
    tmp_path: Path,
    wait_until: WaitUntil,
) -> None:
    def reads(expression: str, value: float | None) -> None:
        wait_until(lambda: prometheus.value(expression) == value, what=f"{expression} is {value}")

    reads('up{job="controller"}', 0)  # the file of the key is still empty
    (tmp_path / "key").write_text(operator[0])
    reads('up{job="controller"}', 1)
    reads('up{job="flower"}', 1)
    reads("modelyard_redis_up", 1)
    wait_until(lambda: health_of_rules(prometheus) == {"ok"}, what="every rule is evaluated without an error")
    for path in ("/", "/workers", "/api/workers", "/api/worker/shutdown/x"):
        ask = http.post if "shutdown" in path else http.get
        assert ask(f"{flower}{path}").status_code == 401, path
    assert http.get(f"{flower}/workers", auth=LOGIN).status_code == 200
    assert LOGIN[1].encode() not in b"".join(map(command_line, Path("/proc").glob("[0-9]*")))
    reads('modelyard_live_workers{worker="3",model="MNIST_PyTorch_Model",version="3"}', 1)
    reads('modelyard_val_accuracy_ratio{worker="3",model="MNIST_PyTorch_Model",version="3"}', 0.875)
    reads('modelyard_backlog_jobs{worker="3",model="MNIST_PyTorch_Model",version="3"}', 0)

    http.headers["Authorization"] = f"Bearer {operator[0]}"
    job = http.post(f"{controller}/predict", json={"data": [[[[0.0] * 28] * 28]]})
    assert http.post(f"{controller}/predict", json={"data": "seven"}).status_code == 422
    reads('modelyard_backlog_jobs{worker="3",model="MNIST_PyTorch_Model",version="3"}', 1)
    reads('modelyard_batch_jobs_count{worker="3",model="MNIST_PyTorch_Model",version="3"}', 1)
    reads('sum(modelyard_requests_rejected_total{code!="unauthenticated"})', 1)

    for query in queries(model="MNIST_PyTorch_Model", version="3"):
        prometheus.get("query", query=query)
        if "rate(" not in query and "> 0" not in query and "ALERTS" not in query:
            assert prometheus.get("query", query=query)["result"], query

    worker.close()
    reads('modelyard_live_workers{worker="3",model="MNIST_PyTorch_Model",version="3"}', 0)
    reads('modelyard_val_accuracy_ratio{worker="3",model="MNIST_PyTorch_Model",version="3"}', None)
    assert http.delete(f"{controller}/results/{job.json()['id']}").status_code == 200
    for gone in ("modelyard_live_workers", "modelyard_backlog_jobs", "modelyard_batch_jobs_count"):
        reads(gone, None)
