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
from contextlib import contextmanager
from importlib.metadata import version
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
from tests.pool_samples import MODEL, record
from tests.published import document_of, problems, schema_problems

HERE = Path(__file__).parent
VOLATILE = re.compile(r"(_ms|_s|_id|^pid|^main_pid|^host|^id|^last|^p50|^p99)$")
JOB_ID, BATCH_ID = re.compile(r"[\w-]{20,}\.\d+"), re.compile(r"\b[0-9a-f]{32}\b")
PAIR = {"data": [1, 2]}
RELEASE = version("modelyard")
JSON_LINES = {"content-type": "application/x-ndjson"}


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
def pool(
    free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, HandWorker]]:
    """A controller's process, called over a socket, and a worker played by hand."""
    port = free_port()
    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        worker = HandWorker(client, record())
        worker.start()
        folder = tmp_path_factory.mktemp("batches")
        with (
            serving(server, port, folder),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        ):
            wait_until_true(lambda: is_ready(http), 60, "the controller is ready")
            wait_until_true(lambda: http.get("/decisions").json()["decisions"], 60, "its choice is logged")
            yield http, worker


class serving:  # noqa: N801  (used as a function)
    """A controller's process for the duration."""

    def __init__(self, server: RedisServer, port: int, batch_folder: Path) -> None:
        own = {"MODELYARD_LAME_DUCK_S": "0", "MODELYARD_BATCH_FOLDER": str(batch_folder)}
        self._environment = os.environ | {"REDIS_URL": server.url} | own
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
    if value == RELEASE:
        return "<release>"
    return BATCH_ID.sub("<batch>", JOB_ID.sub("<job>", value)) if isinstance(value, str) else value


def is_document(response: httpx.Response) -> bool:
    """Whether the body is one JSON document. Those of `GET /ping` and `GET /version` are not, as MLflow has them."""
    is_json = response.headers.get("content-type") in ("application/json", "application/problem+json")
    return is_json and response.text[:1] in "[{"


def answer(response: httpx.Response) -> dict[str, Any]:
    kept = ("content-type", "location", "retry-after", "allow", "cache-control")
    headers = {name: plain(response.headers[name]) for name in kept if name in response.headers}
    if "retry-after" in headers:
        headers["retry-after"] = "<seconds>"
    return {
        "status": response.status_code,
        "headers": headers,
        "body": plain(response.json()) if is_document(response) else "",
    }


@contextmanager
def working(worker: HandWorker) -> Iterator[None]:
    """The worker runs what arrives, for the duration."""
    ended = threading.Event()

    def run_batches() -> None:
        while not ended.wait(0.01):
            if batch := worker.claim():
                worker.finish(batch)

    thread = threading.Thread(target=run_batches)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Recording:
    """The answers of a controller, by route and case.

    Attributes:
        ids: Values of the names in routes.
    """

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.answers: dict[str, httpx.Response] = {}
        self.ids = {"name": MODEL, "version": "1", "number": "1", "job_id": "none", "batch_id": "none"}

    def ask(self, route: str, case: str = "", **options: Any) -> Any:
        """Send a request, such as `GET /results/{job_id}`, and record its answer."""
        method, path = route.split(" ", 1)
        response = self.http.request(method, path.format_map(self.ids), **options)
        self.answers[f"{route}, {case}" if case else route] = response
        return response


@pytest.fixture(scope="module")
def answers(pool: tuple[httpx.Client, HandWorker]) -> dict[str, httpx.Response]:
    """One answer of every route, and some refusals."""
    http, worker = pool
    recording = Recording(http)
    record_jobs(recording)
    with working(worker):
        record_predictions(recording)
    record_pool(recording)
    record_batches(recording)
    record_operations(recording)
    return recording.answers


def record_jobs(to: Recording) -> None:
    to.ask("GET /results/{job_id}", "unknown")
    to.ids["job_id"] = to.ask("POST /predict", json=PAIR).json()["id"]
    to.ask("GET /jobs?status=queued")
    to.ask("GET /results/{job_id}")
    to.ask("DELETE /results/{job_id}")
    to.ask("GET /results/{job_id}/events")
    to.ask("GET /results?ids={job_id},none")
    to.ask("GET /results?ids=", "without ids")
    to.ask("GET /results/events?ids={job_id}")
    to.ask("GET /v2/results/{job_id}")
    to.ask("GET /quarantine")
    to.ask("POST /quarantine/{job_id}/resend", "not quarantined")


def record_predictions(to: Recording) -> None:
    for path in ("", "/endpoints/{name}", "/models/{name}", "/models/{name}/versions/{version}"):
        to.ask(f"POST {path}/predict?wait=20", json=PAIR)
    for path in ("", "/endpoints/{name}", "/models/{name}", "/models/{name}/versions/{version}"):
        to.ask(f"POST {path}/invocations", json={"inputs": [PAIR["data"]]})
    tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": PAIR["data"]}
    for path in ("", "/versions/{version}"):
        to.ask(f"POST /v2/models/{{name}}{path}/infer", json={"inputs": [tensor]})
    to.ask("POST /predict", "not JSON", content=b"{")
    to.ask("POST /predict", "a wrong shape", json={"data": [1, 2, 3]})
    to.ask("POST /predict?worker=9", "an unknown worker", json=PAIR)
    to.ask("GET /predict")


def record_pool(to: Recording) -> None:
    for path in ("", "/versions/{version}"):
        for kind in ("", "/config", "/ready"):
            to.ask(f"GET /v2/models/{{name}}{path}{kind}")
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/health", "/healthz", "/ping", "/version"):
        to.ask(f"GET {path}")
    to.ask("POST /v2/repository/index", json={})
    for path in ("/readyz", "/readyz/read", "/metrics", "/workers", "/route", "/findings", "/nowhere"):
        to.ask(f"GET {path}")
    to.ask("GET /models/{name}/versions/{version}/openapi.json")
    to.ask("GET /scale/{name}/{version}")
    to.ask("POST /registry/webhook", "without a secret", json={})


def record_batches(to: Recording) -> None:
    to.ids["batch_id"] = to.ask("POST /batches", content=b"[[1,2]]\n", headers=JSON_LINES).json()["id"]
    to.ask("DELETE /batches/{batch_id}")
    batch = f"/batches/{to.ids['batch_id']}"
    wait_until_true(lambda: to.http.get(batch).json()["status"] == "cancelled", 20, "the batch is cancelled")
    to.ask("GET /batches")
    for path in ("", "/output", "/errors"):
        to.ask(f"GET /batches/{{batch_id}}{path}")


def record_operations(to: Recording) -> None:
    for operation in ("disable", "enable", "pin"):
        to.ask(f"POST /models/{{name}}/versions/{{version}}/{operation}")
    to.ask("POST /models/{name}/unpin")
    to.ask("POST /models/{name}/versions/{version}/retire")
    to.ask("POST /models/{name}/versions/{version}/enable", "retired")
    to.ask("POST /models/{name}/versions/{version}/scale?replicas=2", "not scalable")
    to.ask("DELETE /models/{name}/versions/{version}", "in use")
    to.ask("GET /decisions")


def test_one_answer_of_every_route_is_as_frozen(answers: dict[str, httpx.Response]) -> None:
    check("answers.json", as_text({name: answer(response) for name, response in answers.items()}))


def test_every_answer_is_one_that_the_openapi_document_describes(
    pool: tuple[httpx.Client, HandWorker], answers: dict[str, httpx.Response]
) -> None:
    document = pool[0].get("/openapi.json").json()
    methods = {(method, path) for path, found in document["paths"].items() for method in found}
    for name, response in answers.items():
        method, path = re.split(r"[ ?,]", name)[:2]
        methods.discard((method.lower(), path))
        if not is_document(response):
            continue
        schemas = document["components"]["schemas"]
        if operation := document["paths"].get(path, {}).get(method.lower()):
            described = (
                operation["responses"].get(str(response.status_code)) or operation["responses"]["default"]
            )
            schema = described["content"][response.headers["content-type"]]["schema"]
            assert not schema_problems(schema, response.json(), schemas), name
        else:  # no route, or no method of it, is described nowhere and still a problem
            assert not problems("Problem", response.json(), schemas), name
    assert methods == set(), "each route has a recorded answer"


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


def test_every_metric_keeps_its_name_type_and_labels(pool: tuple[httpx.Client, HandWorker]) -> None:
    http, worker = pool
    with working(worker):
        http.post("/predict?wait=20", json=PAIR)
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
