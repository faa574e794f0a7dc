"""Every kind of model that people keep in MLflow is served, and answers what MLflow's own scoring server answers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import msgspec
import numpy as np
import pytest
from mlflow.pyfunc import scoring_server

from app.contract import Column, ColumnsContract, ColumnType, Contract, TensorContract
from app.contract.documents import read_json
from app.contract.payloads import to_payload
from app.ledger.ids import JobRef
from app.ledger.wire import JobEntry, JobOutcome
from app.ledger.worker_ledger import ClaimedBatch
from app.server_errors import ModelNotAllowedError
from app.settings import WorkerSettings
from controller.http.job_json import job_json, predictions_json
from tests.pool_samples import head, now_ms, outcome
from tests.workers import kinds
from tests.workers.kinds import ALL_SETTINGS, KINDS, Kind, Registered
from workers import model
from workers.job_inputs import decode, model_input
from workers.job_outputs import to_outcomes
from workers.model_lookup import ModelVersion, read_description
from workers.warm_up import LoadedModel


@pytest.fixture(scope="module")
def registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking URI of a registry without models."""
    return kinds.new_registry(empty_database, tmp_path_factory.mktemp("kinds"))


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Loading a model sets what MLflow and PyTorch allow, for the whole process."""
    names = (model.MLFLOW_SWITCH, model.TORCH_SWITCH)
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def load(made: Registered, kind: Kind, registry: str) -> LoadedModel:
    described = read_description(made.path)
    found = ModelVersion(
        made.name, 1, "", made.path, described.flavors, described.signature, task=described.task
    )
    if kind.settings:
        with pytest.raises(ModelNotAllowedError):
            model.load(found, WorkerSettings(allow_pickle_models=False))
    settings = WorkerSettings(
        allow_pickle_models="MODELYARD_ALLOW_PICKLE_MODELS" in kind.settings,
        allow_non_finite="MODELYARD_ALLOW_NON_FINITE" in kind.settings,
        device="cpu",
        mlflow_tracking_uri=registry,
    )
    return model.load(found, settings)


def answers(loaded: LoadedModel, body: bytes, n_jobs: int) -> list[JobOutcome]:
    """What a batch of so many jobs with this body is answered."""
    contract = loaded.contract
    payload = to_payload(read_json(body, "strict"), contract, 100, "strict")
    batch_head = head(
        n_jobs, jobs=[JobEntry(payload.n_samples, now_ms(), now_ms() + 60_000, "", forced=False)] * n_jobs
    )
    if isinstance(contract, TensorContract):
        batch_head = msgspec.structs.replace(
            batch_head, dtype=contract.dtype, sample_shape=contract.sample_shape
        )
    if payload.form:
        fields = payload.form.head_fields([len(payload.data)] * n_jobs)
        batch_head = msgspec.structs.replace(batch_head, **fields)
    batch = ClaimedBatch(
        batch_id="b",
        head=batch_head,
        data=payload.data * n_jobs,
        attempts=1,
        claimed_at_ms=now_ms(),
        cancelled=frozenset(),
    )
    params = decode(batch_head.params) if batch_head.params else None
    given = model_input(batch, range(n_jobs), contract, loaded.takes_matrix)
    output = loaded.predict(given, params=params) if params else loaded.predict(given)
    counts = [payload.n_samples] * n_jobs
    return to_outcomes(output, counts, contract, loaded.task, loaded.allows_non_finite)


def by_mlflow(path: str, body: bytes) -> Any:
    """The predictions of MLflow's own scoring server."""
    os.environ[model.MLFLOW_SWITCH] = "true"
    served = mlflow.pyfunc.load_model(path)
    answer = scoring_server.invocations(body, "application/json", served, served.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    return json.loads(answer.response)["predictions"]


def is_same(ours: Any, theirs: Any) -> bool:
    """Whether two answers are the same, but for the digits of float32, and null in place of NaN."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(ours, theirs, rel_tol=1e-5)
    if isinstance(theirs, float) and not math.isfinite(theirs):
        return ours is None
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(is_same, ours, theirs))
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(is_same(ours[name], theirs[name]) for name in theirs)
    return type(ours) is type(theirs) and bool(ours == theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", KINDS)
def test_a_kind_of_model_is_served_and_answers_what_mlflow_would(
    script: str, registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[script]
    if not kinds.is_installed(script):
        pytest.skip(f"{kind.library} is not installed")
    made = kinds.register(script, registry)
    shown = capsys.readouterr().out
    assert [name for name in ALL_SETTINGS if f"{name}=true" in shown] == list(kind.settings)
    body = json.dumps(made.body).encode()
    assert f"curl -d '{body.decode()}' 'http://127.0.0.1:9000/predict?model={made.name}&wait=10'" in shown
    loaded = load(made, kind, registry)
    contract: Contract = loaded.contract
    assert msgspec.json.decode(msgspec.json.encode(contract))["kind"] == kind.contract
    assert (isinstance(contract, TensorContract) or contract.merges) == kind.merges
    assert loaded.labels == list(kind.labels)
    [alone] = answers(loaded, body, 1)
    assert alone.status == "succeeded", alone.error_detail
    predictions = json.loads(predictions_json(alone))
    if kind.merges:
        # Only the last digits may differ: processors sum the products of larger matrices in another order.
        for merged in answers(loaded, body, 3):
            assert (merged.status, merged.classes, merged.task) == ("succeeded", alone.classes, alone.task)
            assert is_same(json.loads(predictions_json(merged)), predictions)
    if kind.serves_in_mlflow:
        assert is_same(predictions, by_mlflow(made.path, body))


def test_every_script_is_a_kind_that_the_page_about_models_shows() -> None:
    scripts = {path.stem for path in kinds.SCRIPTS.glob("*.py")} - {"show"}
    assert scripts == set(KINDS)
    page = (kinds.SCRIPTS.parents[1] / "docs" / "models.md").read_text()
    assert [name for name in KINDS if f"(../examples/models/{name}.py)" not in page] == []


@pytest.mark.parametrize(
    ("task", "output", "predictions"),
    [
        (
            "classification",
            np.array([[0.25, 0.75], [0.5, 0.5]]),
            [{"class": 1, "scores": [0.25, 0.75]}, {"class": 0, "scores": [0.5, 0.5]}],
        ),
        ("classification", np.array(["low", "high"]), [{"label": "low"}, {"label": "high"}]),
        ("classification", np.array([3, 8]), [{"class": 3, "scores": None}, {"class": 8, "scores": None}]),
        ("regression", np.array([[0.5], [1.5]]), [{"value": 0.5}, {"value": 1.5}]),
        ("", np.array([[0.25, 0.75]] * 2), None),
    ],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_version_that_says_what_it_is_is_answered_so(
    task: str, output: Any, predictions: Any, n_jobs: int
) -> None:
    contract = ColumnsContract((Column("a", ColumnType("long")),))
    outcomes = to_outcomes(output, [2 // n_jobs] * n_jobs, contract, task, False)
    entry = JobEntry(1, now_ms(), now_ms() + 1000, "", forced=False)
    found: list[Any] = []
    for index in range(n_jobs):
        batch = outcome(n_jobs, jobs=outcomes)
        written = json.loads(
            job_json(JobRef("b" * 32, index), head(n_jobs, jobs=[entry] * n_jobs), "succeeded", batch)
        )
        found += written.get("predictions") or [None]
        assert written["outputs"] == output.tolist()[index * (2 // n_jobs) :][: 2 // n_jobs]
    assert found == (predictions or [None] * n_jobs)
