"""What the registry says of a version beside its files: quality, run, identity, and what there is instead."""

from __future__ import annotations

import math

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.cli import cli

from app.errors import ModelNotFoundError
from training.inventory import registered_versions
from training.registry import ask_versions
from workers.model_lookup import look_up

MODEL = "Odd"


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
    client.create_model_version(MODEL, mlflow.artifacts.download_artifacts("models:/Scikit/1"))
    client.set_registered_model_alias(MODEL, "winner", "1")
    for run_id in runs[3:]:
        client.delete_run(run_id)
    purge = ["gc", "--backend-store-uri", registry, "--run-ids", runs[4]]
    done = CliRunner().invoke(cli, purge, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return registry


@pytest.mark.parametrize(
    ("version", "warning"),
    [
        ("1", "val_accuracy 97.5 counts as none: expected a fraction in [0, 1], not a percentage"),
        ("2", "val_accuracy nan counts as none"),
        ("3", "counts as none"),
        ("4", "was deleted, so its val_accuracy does not count; `mlflow runs restore"),
        ("5", "was purged from the registry"),
    ],
)
def test_a_quality_that_is_none_is_served_as_none_with_one_warning(
    odd: str, version: str, warning: str
) -> None:
    found = look_up(odd, MODEL, version)
    assert found.val_accuracy is None
    [said] = found.warnings
    assert warning in said


def test_both_lists_of_versions_take_no_such_quality_either(odd: str) -> None:
    quick = registered_versions(odd, MODEL)
    assert [each.val_accuracy for each in quick] == [None] * 6
    assert quick == ask_versions(odd, MODEL)


def test_a_version_is_told_apart_by_its_logged_model_or_its_files(odd: str) -> None:
    logged, alone = look_up(odd, "Scikit", "1"), look_up(odd, MODEL, "6")
    assert (logged.model_id[:2], logged.warnings) == ("m-", ())
    assert (alone.run_id, alone.model_id[:7]) == ("", "sha256:")
    assert look_up(odd, MODEL, "6").model_id == alone.model_id


@pytest.mark.parametrize(
    ("name", "version", "named"),
    [
        ("Scikt", "latest", "its models, nearest first: Scikit"),
        ("odd", "1", "its models, nearest first: Odd"),
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
