"""Clients of other servers against a real pool, each as its documentation shows; only the address is another."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from mlflow.deployments import get_deploy_client
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

import environments
from modelyard import Client
from tests.e2e.conftest import MODEL, Digits, Pool
from tests.e2e.fuzz import send_many
from tests.e2e.orders import register_orders

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's own, of the saved model
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("foreign_clients")
ORDERS = "Orders"
N_DIGITS = 3
ROWS = [{"text": "ä", "n": 1}, {"text": "b", "n": 2}]
ANSWER = [{"upper": "Ä", "double": 2}, {"upper": "B", "double": 4}]
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
DATATYPES = ["FP32", "INT64", "BYTES", "BOOL", "FP16"]
TEXT = st.text(max_size=5)


@dataclass(frozen=True)
class Target:
    """Where the clients send their requests, and a folder with digits and their classes."""

    url: str
    folder: Path


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """A request that the model with columns takes, in any of the forms that the protocol allows."""
    size = draw(st.integers(1, 3))
    shape = draw(st.sampled_from([[size], [size, 1]]))
    texts = draw(st.lists(TEXT, min_size=size, max_size=size))
    counts = draw(st.lists(st.integers(-(2**62), 2**62), min_size=size, max_size=size))
    data = {"text": ("BYTES", texts), "n": ("INT64", [[each] for each in counts] if shape[1:] else counts)}
    request: dict[str, Any] = {
        "inputs": [
            {"name": name, "shape": shape, "datatype": datatype, "data": values}
            for name, (datatype, values) in draw(st.permutations(list(data.items())))
        ]
    }
    optional = st.fixed_dictionaries(
        {},
        optional={
            "id": TEXT,
            "parameters": st.fixed_dictionaries(
                {}, optional={"factor": st.integers(0, 2), "priority": st.just(1)}
            ),
            "outputs": st.lists(
                st.sampled_from(["upper", "double"]).map(lambda name: {"name": name}), min_size=1
            ),
        },
    )
    return request | draw(optional)


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of the clients' environment."""
    lock = ROOT / "requirements" / "foreign-clients.lock"
    return str(environments.programs(lock, ROOT / ".venv-foreign-clients") / "python")


@pytest.fixture(scope="module")
def target(
    served: tuple[Pool, str, Client], digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    pool, url, client = served
    folder = tmp_path_factory.mktemp("digits")
    images = digits.images[:N_DIGITS]
    np.save(folder / "images.npy", images)
    classes = client.predict(images, model=MODEL, version=1, wait_s=30).classes
    (folder / "classes.json").write_text(json.dumps(classes.tolist()))
    register_orders(pool.folder, ORDERS)
    worker = pool.start("workers", MODEL_NAME=ORDERS, MODEL_VERSION="1", MODELYARD_ALLOW_PICKLE_MODELS="true")
    pool.wait_for_workers(url, 3)
    yield Target(url, folder)
    pool.stop(worker)
    client.control("forget", ORDERS, 1)  # so that it is no endpoint of the tests that follow


@pytest.mark.parametrize("name", ["triton", "kserve_rest", "typed_client"])
def test_a_client_of_the_open_inference_protocol_works_as_documented(
    name: str, target: Target, python: str
) -> None:
    command = [python, str(SCRIPTS / f"{name}.py"), target.url, MODEL, ORDERS, str(target.folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


def test_requests_and_mlflow_s_own_client_work_as_with_mlflow_s_scoring_server(target: Target) -> None:
    frame = pd.DataFrame(ROWS)
    split = {"columns": ["text", "n"], "data": [["ä", 1], ["b", 2]]}
    url = f"{target.url}/models/{ORDERS}/invocations"
    bodies: list[Any] = [
        {"dataframe_split": split},
        {"dataframe_records": ROWS},
        {"inputs": ROWS},
        {"instances": ROWS},
    ]
    for body in bodies:
        answer = requests.post(url, json=body, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"predictions": ANSWER})
    as_text = requests.post(
        url, data=frame.to_csv(index=False).encode(), headers={"Content-Type": "text/csv"}, timeout=60
    )
    assert as_text.json() == {"predictions": ANSWER}
    images = np.load(target.folder / "images.npy")
    asked = {"inputs": images.tolist()}
    scores = requests.post(f"{target.url}/models/{MODEL}/versions/1/invocations", json=asked, timeout=60)
    found = np.argmax(scores.json()["predictions"], axis=1).tolist()
    assert found == json.loads((target.folder / "classes.json").read_text())
    deployed = get_deploy_client(target.url)
    assert deployed is not None
    answer = deployed.predict(endpoint=ORDERS, inputs={"dataframe_records": ROWS})
    assert answer["predictions"] == ANSWER
    address = urlsplit(target.url)
    own = ScoringServerClient(address.hostname, address.port)
    own.ping()
    assert own.get_version() == requests.get(f"{target.url}/version", timeout=60).text
    with pytest.raises(Exception, match="several endpoints are served, and the request names none"):
        own.invoke(images)


def test_mlflow_s_own_client_reaches_the_default_endpoint(
    target: Target, served: tuple[Pool, str, Client], tmp_path: Path
) -> None:
    """It posts to /invocations of the whole pool."""
    pool, _, _ = served
    file = tmp_path / "modelyard.toml"
    file.write_text(f'[endpoints.orders]\nmodels = ["{ORDERS}"]\ndefault = true\n')
    pool.environment["MODELYARD_FILE"] = str(file)
    try:
        url = pool.controller()
    finally:
        del pool.environment["MODELYARD_FILE"]
    pool.wait_for_workers(url, 3)
    address = urlsplit(url)
    own = ScoringServerClient(address.hostname, address.port)
    answer = own.invoke(pd.DataFrame(ROWS), params={"factor": 3}).get_predictions()
    assert answer["double"].tolist() == [3, 6]
    pool.stop(pool.serving(url))


def test_the_description_of_the_protocol_finds_nothing(target: Target, python: str) -> None:
    """Neither in requests that it allows or forbids, nor in the answers to those that a model takes."""
    ran = subprocess.run(
        [python, str(SCRIPTS / "description.py")], capture_output=True, check=True, timeout=60
    )
    document = json.loads(ran.stdout)
    tensor = document["components"]["schemas"]["RequestInput"]["properties"]
    # Of names and datatypes without bounds no request would come further than to the first check.
    tensor["name"]["enum"], tensor["datatype"]["enum"] = ["input-0", "text", "n"], DATATYPES
    found: Iterable[Any] = schemathesis.openapi.from_dict(document).get_all_operations()
    operations = {each.ok().path: each.ok() for each in found}
    strategies = [
        operation.as_strategy(generation_mode=mode)
        for operation in operations.values()
        for mode in GenerationMode
    ]
    infer = operations["/v2/models/{model_name}/infer"]
    statuses: Counter[int] = Counter()

    def send(case: Any) -> None:
        answer = case.call(base_url=target.url)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code != 200:
            assert isinstance(answer.json()["error"], str), answer.content
            assert answer.headers["content-type"] == ["application/json"]

    models, versions = st.sampled_from([MODEL, ORDERS, None]), st.sampled_from(["1", None])

    @send_many(40, 1, case=st.one_of(strategies), model=models, version=versions)
    def any_request(case: Any, model: str | None, version: str | None) -> None:
        known = {"model_name": model, "model_version": version}
        for name in case.path_parameters:
            case.path_parameters[name] = known[name] or case.path_parameters[name]
        send(case)

    @send_many(40, 1, body=orders())
    def right_request(body: Any) -> None:
        send(infer.Case(path_parameters={"model_name": ORDERS}, body=body, media_type="application/json"))

    assert statuses[200] >= 40
    assert set(statuses) <= {200, 400, 404}
