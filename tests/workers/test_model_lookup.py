"""What the registry says of a version beside its files: quality, run, identity, and what there is instead."""

from __future__ import annotations

import math

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from app.quality import packed_rows
from app.server_errors import ModelNotFoundError
from training.inventory import registered_versions
from workers.model_lookup import look_up

MODEL, SHARED = "Impossible", "Shared"


@pytest.fixture(scope="module")
def odd(registry: str) -> str:
    """The registry, with a model whose versions 1 to 3 have impossible qualities; the runs of 4 and 5 are gone."""
    mlflow.set_tracking_uri(registry)
    client = mlflow.MlflowClient()
    source = client.get_model_version("Scikit", "1").source
    client.create_registered_model(MODEL)
    runs = []
    for quality in (97.5, math.nan, math.inf, 0.9, 0.9):
        run = client.create_run("0")
        client.log_metric(run.info.run_id, "val_accuracy", quality)
        client.create_model_version(MODEL, source, run.info.run_id)
        runs.append(run.info.run_id)
    files = mlflow.artifacts.download_artifacts("models:/Scikit/1")
    client.create_model_version(MODEL, files, tags={"modelyard.image_scale": "255"})
    client.set_registered_model_alias(MODEL, "winner", "1")
    for run_id in runs[3:]:
        client.delete_run(run_id)
    from mlflow.cli import cli  # takes seconds, which every process of the test run would spend

    purge = ["gc", "--backend-store-uri", registry, "--run-ids", runs[4]]
    done = CliRunner().invoke(cli, purge, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return registry


@pytest.mark.parametrize(
    ("version", "warning"),
    [
        ("1", "val_accuracy 97.5 is ignored: expected a fraction in [0, 1], not a percentage"),
        ("2", "val_accuracy nan is ignored"),
        ("3", "is ignored"),
        ("4", "was deleted, so its val_accuracy is ignored; `mlflow runs restore"),
        ("5", "was purged from the registry"),
    ],
)
def test_a_quality_that_is_none_is_served_as_none_with_one_warning(
    odd: str, version: str, warning: str
) -> None:
    found = look_up(odd, MODEL, version)
    assert found.quality.value is None
    [said] = found.warnings
    assert warning in said


def test_the_list_of_versions_takes_no_such_quality_either(odd: str) -> None:
    assert [each.val_accuracy for each in registered_versions(odd, MODEL)] == [None] * 6


def test_a_version_is_told_apart_by_its_logged_model_or_its_files(odd: str) -> None:
    logged, alone = look_up(odd, "Scikit", "1"), look_up(odd, MODEL, "6")
    assert (logged.model_id[:2], logged.warnings) == ("m-", ())
    assert (alone.run_id, alone.model_id[:7]) == ("", "sha256:")
    assert look_up(odd, MODEL, "6").model_id == alone.model_id


def test_the_scale_of_pixels_is_a_tag_of_the_version(odd: str) -> None:
    assert look_up(odd, MODEL, "6").signature["image_scale"] == "255"
    assert "image_scale" not in look_up(odd, MODEL, "1").signature


@pytest.mark.parametrize(
    ("name", "version", "named"),
    [
        ("Scikt", "latest", "its models, nearest first: Scikit"),
        ("impossible", "1", "its models, nearest first: Impossible"),
        (MODEL, "winer", "its aliases, nearest first: winner"),
        (MODEL, "99", "it has version 1, 2, 3, 4, 5, 6"),
        ("Emptied", "latest", "it has no version of that model"),
    ],
)
def test_what_is_not_found_is_answered_with_what_there_is(
    odd: str, name: str, version: str, named: str
) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        look_up(odd, name, version)
    assert named in raised.value.detail


@pytest.fixture(scope="module")
def shared_run(registry: str) -> str:
    """The registry, with two models of one run, 0.9 and 0.7, a third without a metric, and a model without a run."""
    mlflow.set_tracking_uri(registry)
    client = mlflow.MlflowClient()
    client.create_registered_model(SHARED)
    from sklearn.linear_model import LogisticRegression

    inputs = np.array([[0.0], [1.0]])
    fitted = LogisticRegression().fit(inputs, [0, 1])
    takes = ModelSignature(inputs=Schema([TensorSpec(inputs.dtype, (-1, 1))]))
    data = mlflow.data.from_numpy(inputs, name="digits", digest="d1", source="http://localhost/digits")

    def log(quality: float | None, run_id: str | None = None) -> None:
        info = mlflow.sklearn.log_model(
            fitted, name="model", signature=takes, pip_requirements=["scikit-learn"]
        )
        if quality is not None:
            values = {"val_accuracy": quality, "rmse": 10 * quality}
            mlflow.log_metrics(values, model_id=info.model_id, dataset=data)
        client.create_model_version(SHARED, info.model_uri, run_id=run_id)

    with mlflow.start_run() as run:
        for quality in (0.9, 0.7, None):
            log(quality, run.info.run_id)
    for version in ("1", "2"):
        client.set_model_version_tag(SHARED, version, "modelyard.val_correct", "1111111110")
    log(0.6)
    mlflow.end_run()  # that the metric was logged in
    client.copy_model_version(f"models:/{SHARED}/1", "Copied")
    with mlflow.start_run() as run:
        mlflow.log_metric("val_accuracy", 0.5)
        log(None, run.info.run_id)
    return registry


def test_models_of_one_run_keep_their_own_quality(shared_run: str) -> None:
    found = [look_up(shared_run, SHARED, str(number)).quality for number in (1, 2, 3)]
    assert [each.value for each in found] == [0.9, 0.7, None]
    assert [(each.source, each.dataset, each.dataset_digest, each.dataset_rows) for each in found[:2]] == [
        ("model", "digits", "d1", 2)
    ] * 2
    assert "for several models, so it is ignored" in found[2].warnings[0]


def test_the_rows_that_a_version_got_right_are_its_tag_unless_they_contradict_its_quality(
    shared_run: str,
) -> None:
    one, two = (look_up(shared_run, SHARED, version).quality for version in ("1", "2"))
    assert (one.correct, one.warnings, two.correct) == (packed_rows("1111111110"), (), "")
    assert two.warnings == ("modelyard.val_correct is ignored: 9 of 10 rows are not its val_accuracy of 0.7",)


def test_a_version_has_the_value_of_the_metric_that_is_asked_for(shared_run: str) -> None:
    found = [look_up(shared_run, SHARED, version, metric="rmse").quality for version in ("1", "2", "5")]
    assert [(each.value, each.source, each.dataset_rows) for each in found] == [
        (9.0, "model", 2),
        (7.0, "model", 2),
        (None, "", 0),
    ]


def test_a_model_without_a_run_has_the_quality_that_was_logged_for_it(shared_run: str) -> None:
    assert look_up(shared_run, SHARED, "4").quality.value == 0.6


def test_a_copied_version_has_the_quality_of_its_original(shared_run: str) -> None:
    assert look_up(shared_run, "Copied", "1").quality == look_up(shared_run, SHARED, "1").quality


def test_a_run_of_one_model_gives_it_its_quality(shared_run: str) -> None:
    found = look_up(shared_run, SHARED, "5").quality
    assert (found.value, found.source, found.warnings) == (0.5, "run", ())
