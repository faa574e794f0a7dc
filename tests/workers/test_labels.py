"""The classes of a declared classifier have names: declared ones, those of the estimator, or of its output columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from app.ledger.ids import JobRef
from app.settings import WorkerSettings
from controller.http.job_json import BatchJson, job_json
from tests.pool_samples import head, new_batch
from tests.workers.runner_bench import Bench, score
from workers import model
from workers.model_lookup import ModelVersion, read_description
from workers.warm_up import LoadedModel

COLUMNS = [{"type": "double", "name": name, "required": True} for name in ("left", "right")]
SAMPLES = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def load(
    folder: Path,
    classes: list[Any],
    declared: Any = None,
    outputs: list[Any] | None = None,
    in_pipeline: bool = False,
    task: str = "classification",
) -> LoadedModel:
    """A classifier that answers probabilities, in the format skops, with these two classes."""
    import skops.io  # takes seconds, which every process of the test run would spend
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [StandardScaler()] if in_pipeline else []
    estimator = make_pipeline(*steps, LogisticRegression()).fit(SAMPLES, np.repeat(classes, 2))
    skops.io.dump(estimator if in_pipeline else estimator[-1], folder / "model.skops")
    tensor = {"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}
    description = {
        "flavors": {
            "python_function": {"loader_module": "mlflow.sklearn", "predict_fn": "predict_proba"},
            "sklearn": {"pickled_model": "model.skops", "serialization_format": "skops"},
        },
        "signature": {"inputs": json.dumps([tensor]), "outputs": json.dumps(outputs) if outputs else None},
        "metadata": {"modelyard.task": task, "modelyard.labels": declared},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    described = read_description(str(folder))
    found = ModelVersion(
        *("Plain", 1, "", str(folder), described.flavors, described.signature),
        task=described.task,
        labels=described.labels,
    )
    return model.load(found, WorkerSettings())


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"classes": ["no", "yes"]}, ["no", "yes"]),
        ({"classes": ["no", "yes"], "in_pipeline": True}, ["no", "yes"]),
        ({"classes": [3, 8]}, [3, 8]),
        ({"classes": [False, True]}, [False, True]),
        ({"classes": [0, 1]}, []),
        ({"classes": ["no", "yes"], "declared": ["a", "b"]}, ["a", "b"]),
        ({"classes": ["no", "yes"], "declared": '["a", "b"]'}, ["a", "b"]),
        ({"classes": ["no", "yes"], "declared": "a, b"}, ["a", "b"]),
        ({"classes": ["no", "yes"], "declared": ["a", "b", "c"]}, []),
        ({"classes": ["no", "yes"], "task": ""}, []),
    ],
)
def test_labels_are_declared_or_those_of_the_estimator(
    given: dict[str, Any], labels: list[Any], tmp_path: Path
) -> None:
    assert load(tmp_path, **given).labels == labels


def test_the_columns_of_the_output_name_the_classes_of_a_model_that_has_no_names(tmp_path: Path) -> None:
    assert load(tmp_path, [0, 1], outputs=COLUMNS).labels == ["left", "right"]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_answer_has_the_label_of_each_class(bench: Bench, n_jobs: int) -> None:
    batch_id = bench.accept(new_batch(n_jobs))
    options: dict[str, Any] = {"task": "classification", "labels": ["low", 8], "allows_non_finite": True}

    def predict(samples: Any) -> Any:
        answer = score(samples)
        return np.where(samples[:, :1] == 1, np.nan, answer)

    bench.runner(predict, **options).run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome
    together = BatchJson(batch_id, head(n_jobs))
    for index in range(n_jobs):
        written = job_json(JobRef(batch_id, index), head(n_jobs), "succeeded", outcome)
        assert json.loads(together.job(index, "succeeded", outcome)) == json.loads(written)
        [prediction] = json.loads(written)["predictions"]
        assert (prediction["class"], prediction["label"]) == [(0, "low"), (None, None)][index]


def test_a_class_without_scores_is_the_models_own_and_has_no_label(bench: Bench) -> None:
    batch_id = bench.accept(new_batch(1))
    bench.runner(lambda samples: samples[:, 0], task="classification", labels=["low", "high"]).run(batch_id)
    outcome = bench.outcome(batch_id)
    written = job_json(JobRef(batch_id, 0), head(1), "succeeded", outcome)
    assert json.loads(written)["predictions"] == [{"class": 0.0, "scores": None}]


@pytest.mark.parametrize(
    ("answered", "labels", "named"),
    [
        (np.array([1, 0]), ["low", "high"], ["high", "low"]),
        (np.array([1, 5]), ["low", "high"], ["high", None]),
        (np.array([8, 3]), [3, 8], []),  # the classes themselves
        (np.array([0.25, 1.0]), ["low", "high"], []),
    ],
    ids=["indexes", "one outside", "numbers as labels", "not whole"],
)
def test_whole_numbers_without_scores_have_the_labels_at_their_places(
    bench: Bench, answered: Any, labels: list[Any], named: list[Any]
) -> None:
    batch_id = bench.accept(new_batch(2))
    bench.runner(lambda samples: answered, task="classification", labels=labels).run(batch_id)
    outcome = bench.outcome(batch_id)
    jobs = [job_json(JobRef(batch_id, index), head(2), "succeeded", outcome) for index in range(2)]
    found = [json.loads(each)["predictions"][0].get("label", "none") for each in jobs]
    assert found == (named or ["none"] * 2)
