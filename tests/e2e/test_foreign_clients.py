"""Clients of other servers against a real pool, each as its documentation shows; only the address is another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.models import ModelSignature
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import environments
from modelyard import Client
from tests.e2e.conftest import MODEL, Digits, Pool
from tests.workers.kinds import pyfunc

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's own, of the saved model
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("foreign_clients")
ORDERS = "Orders"
N_DIGITS = 3
ROWS = [{"text": "ä", "n": 1}, {"text": "b", "n": 2}]
ANSWER = [{"upper": "Ä", "double": 2}, {"upper": "B", "double": 4}]


@dataclass(frozen=True)
class Target:
    """Where the clients send their requests, and a folder with digits and their classes."""

    url: str
    folder: Path


def register_orders(folder: Path) -> None:
    """A model of columns with text and a parameter in the pool's registry."""
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text"), ColSpec("long", "n")]),
        outputs=Schema([ColSpec("string", "upper"), ColSpec("long", "double")]),
        params=ParamSchema([ParamSpec("factor", DataType.long, 2)]),
    )
    # A lambda, which is pickled by value: the worker cannot import this module.
    answer = lambda frame, params: pd.DataFrame(  # noqa: E731
        {"upper": frame["text"].str.upper(), "double": frame["n"] * params["factor"]}
    )
    pyfunc(answer, signature, takes_params=True)(str(folder / "orders"))
    registry = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    registry.create_registered_model(ORDERS)
    registry.create_model_version(ORDERS, str(folder / "orders"))


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
    register_orders(pool.folder)
    worker = pool.start("workers", MODEL_NAME=ORDERS, MODEL_VERSION="1", MODELYARD_ALLOW_PICKLE_MODELS="true")
    pool.wait_for_workers(url, 3)
    yield Target(url, folder)
    pool.stop(worker)


@pytest.mark.parametrize("name", ["triton", "kserve_rest", "typed_client"])
def test_a_client_of_the_open_inference_protocol_works_as_documented(name: str, target: Target) -> None:
    lock = ROOT / "requirements" / "foreign-clients.lock"
    python = environments.programs(lock, ROOT / ".venv-foreign-clients") / "python"
    command = [str(python), str(SCRIPTS / f"{name}.py"), target.url, MODEL, ORDERS, str(target.folder)]
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
    address = urlsplit(target.url)
    own = ScoringServerClient(address.hostname, address.port)
    own.ping()
    assert own.get_version() == requests.get(f"{target.url}/version", timeout=60).text
    # It posts to /invocations of the whole pool: the body goes to the version that it fits.
    assert own.invoke(frame, params={"factor": 3}).get_predictions()["double"].tolist() == [3, 6]
    assert own.invoke(images).get_predictions().shape == (N_DIGITS, 10)
