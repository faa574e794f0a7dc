"""What users and programs rely on, frozen: a change of any of it is a decision, not an accident.

`UPDATE_GOLDENS=1 make test ARGS=tests/goldens` writes the files beside this one anew; review their diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from click.testing import CliRunner

from app import server_errors
from app.redis import keys
from app.settings import ControllerSettings
from controller.http.problems import problem
from controller.main import create_app
from modelyard.commands.main import cli, known_commands
from tests.conftest import RedisServer, running_redis, wait_until_true
from tests.controller.conftest import HandWorker
from tests.pool_samples import record
from tests.published import document_of, problems

HERE = Path(__file__).parent
VOLATILE = re.compile(r"(_ms|_s|_id|^pid|^main_pid|^host|^id|^last|^p50|^p99)$")
JOB_ID = re.compile(r"[\w-]{20,}\.\d+")
PAIR = {"data": [1, 2]}


def check(name: str, found: str) -> None:
    """Compare with the golden file of that name."""
    golden = HERE / name
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(found)
    assert found == golden.read_text(), f"{name} differs; if that is meant, UPDATE_GOLDENS=1 writes it anew"


def as_text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def test_the_openapi_document_is_as_frozen() -> None:
    document = create_app(ControllerSettings(redis_url="redis://nowhere:1")).fastapi.openapi()
    document["info"].pop("version")
    check("openapi.json", as_text(document))


def test_every_problem_code_keeps_its_status() -> None:
    kinds = [each for each in vars(server_errors).values() if isinstance(each, type)]
    made = [each("detail") for each in kinds if issubclass(each, server_errors.ModelyardError)]
    check("problem_codes.json", as_text({error.code: problem(error)[0] for error in made}))


def test_every_redis_key_keeps_its_name_and_type() -> None:
    check("redis_keys.json", as_text([[kind.prefix, kind.type, kind.expires] for kind in keys.KINDS]))


@pytest.mark.parametrize("command", ["", *known_commands()])
def test_the_help_of_every_command_is_as_frozen(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("cli.commands.", "modelyard.commands."))]:
        monkeypatch.delitem(sys.modules, name)  # click keeps the help option of a command's first caller
    words = [command, "--help"] if command else ["--help"]
    found = CliRunner().invoke(cli, words, prog_name="modelyard", terminal_width=100)
    assert found.exit_code == 0
    check(f"help_{command or 'modelyard'}.txt", found.output)


@pytest.fixture(scope="module")
def pool(free_port: Callable[[], int]) -> Iterator[tuple[httpx.Client, HandWorker]]:
    """A controller's process, called over a socket, and a worker played by hand."""
    port = free_port()
    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        worker = HandWorker(client, record())
        worker.start()
        with serving(server, port), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            wait_until_true(lambda: is_ready(http), 60, "the controller is ready")
            yield http, worker


class serving:  # noqa: N801  (used as a function)
    """A controller's process for the duration."""

    def __init__(self, server: RedisServer, port: int) -> None:
        self._environment = os.environ | {"REDIS_URL": server.url, "MODELYARD_LAME_DUCK_S": "0"}
        self._command = [sys.executable, "-m", "cli", "serve", "--port", str(port)]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, stderr=subprocess.DEVNULL)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def plain(value: Any, name: str = "") -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each, name) for each in value]
    if value is not None and VOLATILE.search(name):
        return f"<{type(value).__name__}>"
    return JOB_ID.sub("<job>", value) if isinstance(value, str) else value


def answer(response: httpx.Response) -> dict[str, Any]:
    kept = ("content-type", "location", "retry-after", "allow", "cache-control")
    headers = {name: plain(response.headers[name]) for name in kept if name in response.headers}
    if "retry-after" in headers:
        headers["retry-after"] = "<seconds>"
    is_json = "json" in headers.get("content-type", "")
    return {
        "status": response.status_code,
        "headers": headers,
        "body": plain(response.json()) if is_json else "",
    }


def answers(http: httpx.Client, worker: HandWorker) -> dict[str, httpx.Response]:
    """One of every route, and some refusals."""
    accepted = http.post("/predict", json=PAIR)
    job = accepted.json()["result_url"]
    return {
        "POST /predict": accepted,
        "GET /results/{id}": http.get(job),
        "DELETE /results/{id}": http.delete(job),
        "GET /results": http.get("/results", params={"ids": f"{accepted.json()['id']},none"}),
        "GET /results, without ids": http.get("/results?ids="),
        "POST /predict?wait=20": finished(http, worker),
        "POST /predict, not JSON": http.post("/predict", content=b"{"),
        "POST /predict, a wrong shape": http.post("/predict", json={"data": [1, 2, 3]}),
        "POST /predict, an unknown worker": http.post("/predict?worker=9", json=PAIR),
        "GET /predict": http.get("/predict"),
        "GET /results/{id}, unknown": http.get("/results/none"),
        "GET /workers": http.get("/workers"),
        "GET /quarantine": http.get("/quarantine"),
        "POST /quarantine/{id}/resend, unknown": http.post("/quarantine/none/resend"),
        "GET /healthz": http.get("/healthz"),
        "GET /readyz": http.get("/readyz"),
        "GET /metrics": http.get("/metrics"),
        "GET /nowhere": http.get("/nowhere"),
    }


def test_one_answer_of_every_route_is_as_frozen(pool: tuple[httpx.Client, HandWorker]) -> None:
    found = {name: answer(response) for name, response in answers(*pool).items()}
    check("answers.json", as_text(found))


def test_every_answer_is_one_that_the_openapi_document_describes(
    pool: tuple[httpx.Client, HandWorker],
) -> None:
    document = pool[0].get("/openapi.json").json()
    for name, response in answers(*pool).items():
        method, path = re.split(r"[ ?,]", name.replace("{id}", "{job_id}"))[:2]
        described = document["paths"].get(path, {}).get(method.lower())
        if path == "/metrics":
            continue
        # What is at no route, or no method of it, is described nowhere and still a problem.
        kind = document_of(described["responses"][str(response.status_code)]) if described else "Problem"
        assert not problems(kind, response.json(), document["components"]["schemas"]), name


def test_every_example_of_the_openapi_document_is_one_of_its_schema() -> None:
    document = create_app(ControllerSettings(redis_url="redis://nowhere:1")).fastapi.openapi()
    routes = [route for methods in document["paths"].values() for route in methods.values()]
    answered = [each for route in routes for each in route["responses"].values() if "content" in each]
    examples = [
        (document_of(each), content["example"])
        for each in answered
        for content in each["content"].values()
        if "example" in content
    ]
    assert len(examples) > 4
    for kind, example in examples:
        assert not problems(kind, example, document["components"]["schemas"])


def finished(http: httpx.Client, worker: HandWorker) -> httpx.Response:
    """The answer to a post whose job the worker runs meanwhile."""
    answered = threading.Event()

    def run_batches() -> None:
        while not answered.wait(0.01):
            if batch := worker.claim():
                worker.finish(batch)

    thread = threading.Thread(target=run_batches)
    thread.start()
    try:
        return http.post("/predict?wait=20", json=PAIR)
    finally:
        answered.set()
        thread.join()


def test_every_metric_keeps_its_name_type_and_labels(pool: tuple[httpx.Client, HandWorker]) -> None:
    http, worker = pool
    finished(http, worker)
    http.post("/predict", content=b"{")
    families: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            families[name] = kind
        elif not line.startswith("#"):
            series, _, _ = line.rpartition(" ")
            name, _, rest = series.partition("{")
            labels.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    check(
        "metrics.json", as_text({"families": families, "labels": {k: sorted(v) for k, v in labels.items()}})
    )
