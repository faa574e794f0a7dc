"""What the registry says of a version beside its files: quality, run, identity, and what there is instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import Schema, TensorSpec

from app.quality import Quality, packed_rows
from app.server_errors import ModelNotFoundError, RegistryUnavailableError
from training.inventory import registered_versions
from workers.model_lookup import look_up

MODEL, SHARED = "Impossible", "Shared"
VALIDATION = ("digits", "d1", 2)  # name, digest and rows of `digits`


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


def test_a_registry_that_does_not_answer_is_named_with_the_systems_reason(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    reason = rf"the MLflow registry at {uri} does not answer \(\[Errno \d+\] Connection refused\); check"
    with pytest.raises(RegistryUnavailableError, match=reason):
        look_up(uri, MODEL, "1")


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


def logged(model: str | None = None) -> ModelInfo:
    """Log a model of one number, and register it as a version of `model`."""
    from sklearn.linear_model import LogisticRegression

    inputs = np.array([[0.0], [1.0]])
    return mlflow.sklearn.log_model(
        LogisticRegression().fit(inputs, [0, 1]),
        name="model",
        signature=ModelSignature(inputs=Schema([TensorSpec(inputs.dtype, (-1, 1))])),
        pip_requirements=["scikit-learn"],
        registered_model_name=model,
    )


def digits() -> NumpyDataset:
    """A data set of two rows."""
    return mlflow.data.from_numpy(
        np.array([[0.0], [1.0]]), name="digits", digest="d1", source="http://localhost/digits"
    )


@pytest.fixture(scope="module")
def shared_run(registry: str) -> str:
    """The registry, with two models of one run, 0.9 and 0.7, a third without a metric, and a model without a run."""
    mlflow.set_tracking_uri(registry)
    client = mlflow.MlflowClient()
    client.create_registered_model(SHARED)
    data = digits()

    def log(quality: float | None, run_id: str | None = None) -> None:
        info = logged()
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


def test_a_figure_that_mlflow_may_have_given_to_the_wrong_model_of_a_run_is_ignored(registry: str) -> None:
    mlflow.set_tracking_uri(registry)
    with mlflow.start_run():  # the metrics after the models: MLflow adds 0.7 to either of them
        logged("MetricLast")
        mlflow.log_metric("val_accuracy", 0.9)
        logged("MetricLast")
        mlflow.log_metric("val_accuracy", 0.7)
    with mlflow.start_run():  # and before them: it adds 0.6 to the first
        mlflow.log_metric("val_accuracy", 0.9)
        first = logged("MetricFirst")
        mlflow.log_metric("val_accuracy", 0.6)
        logged()
    assert look_up(registry, "MetricLast", "1").quality.value in (None, 0.9)
    assert look_up(registry, "MetricLast", "2").quality.value in (None, 0.7)
    found = look_up(registry, "MetricFirst", "1").quality
    assert found.value is None
    assert "for several models, so it is ignored; log it with `model_id`" in found.warnings[0]
    mlflow.log_metric("val_accuracy", 0.9, model_id=first.model_id)
    mlflow.end_run()  # that the metric was logged in
    assert look_up(registry, "MetricFirst", "1").quality.value == 0.9


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, r"1\.79769e\+308"), (0.0, "")])
def test_a_figure_that_is_no_number_is_no_best_one_although_mlflow_keeps_it_as_one(
    registry: str, value: float, shown: str
) -> None:
    mlflow.set_tracking_uri(registry)
    with mlflow.start_run():
        info = logged("NoNumber")
        for step, rmse in enumerate((0.5, value)):
            mlflow.log_metric("rmse", rmse, step=step, model_id=info.model_id)
    found = look_up(registry, "NoNumber", str(info.registered_model_version), metric="rmse").quality
    assert found.value == (None if shown else 0.0)
    assert not shown or re.match(f"rmse {shown} is ignored: expected a finite number", found.warnings[0])


def test_a_version_without_a_metric_has_the_figure_of_its_tag(registry: str) -> None:
    mlflow.set_tracking_uri(registry)
    client = mlflow.MlflowClient()
    with mlflow.start_run():
        logged("Tagged")

    def tagged(key: str, value: str) -> Quality:
        client.set_model_version_tag("Tagged", "1", key, value)
        return look_up(registry, "Tagged", "1").quality

    assert tagged("val_accuracy", "good").warnings == (
        "its tag val_accuracy is ignored: expected a number, not 'good'",
    )
    assert tagged("val_accuracy", "92").warnings[0].startswith("its tag val_accuracy 92 is ignored")
    tagged("val_accuracy", "0.92")
    tagged("modelyard.eval_rows", "400")
    found = tagged("modelyard.eval_dataset", "d1")
    assert (found.value, found.source, found.dataset_digest, found.dataset_rows) == (0.92, "tag", "d1", 400)


@pytest.mark.parametrize("how", ["dataset of the metric", "input of the run"])
def test_a_figure_of_a_run_is_of_the_data_set_that_the_run_names_for_it(registry: str, how: str) -> None:
    mlflow.set_tracking_uri(registry)
    training = mlflow.data.from_numpy(np.zeros((9, 1)), digest="d0", source="http://localhost/training")
    with mlflow.start_run():
        mlflow.log_input(training, context="training")
        if how == "input of the run":
            mlflow.log_input(digits(), context="validation")
        mlflow.log_metric("val_accuracy", 0.8, dataset=digits() if how == "dataset of the metric" else None)
        version = logged("OfRun").registered_model_version
    found = look_up(registry, "OfRun", str(version)).quality
    assert (found.value, found.source) == (0.8, "run")
    assert (found.dataset, found.dataset_digest, found.dataset_rows) == VALIDATION
