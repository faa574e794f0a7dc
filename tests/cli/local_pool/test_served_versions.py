from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.errors import ModelNotFoundError
from app.settings import Settings
from cli.local_pool.served_versions import choose_versions


@pytest.fixture(scope="module")
def registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry that has versions 1 to 3 of `digits`, and of `other` only version 1."""
    import mlflow

    database = tmp_path_factory.mktemp("registry") / "mlflow.db"
    shutil.copy(empty_database, database)
    uri = f"sqlite:///{database}"
    client = mlflow.MlflowClient(uri)
    for name, count in (("digits", 3), ("other", 1)):
        client.create_registered_model(name)
        for _ in range(count):
            client.create_model_version(name, source=f"file://{Path.cwd()}")
    return uri


def settings(registry: str, model_name: str = "digits") -> Settings:
    return Settings(model_name=model_name, mlflow_tracking_uri=registry)


@pytest.mark.parametrize(("asked", "chosen"), [([], [2, 3]), ([1], [1]), ([3, 1, 3], [1, 3])])
def test_asked_versions_are_served_else_the_two_newest(
    registry: str, asked: list[int], chosen: list[int]
) -> None:
    assert choose_versions(settings(registry), asked) == chosen


def test_only_version_is_served_alone(registry: str) -> None:
    assert choose_versions(settings(registry, "other"), []) == [1]


def test_version_that_does_not_exist_is_named_with_those_that_do(registry: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        choose_versions(settings(registry), [2, 7])
    assert "no version 7 of digits" in caught.value.detail
    assert "it has 1, 2, 3" in caught.value.detail


def test_model_without_versions_says_how_to_train(registry: str) -> None:
    with pytest.raises(ModelNotFoundError, match="modelyard train"):
        choose_versions(settings(registry, "absent"), [])


def test_looking_into_a_registry_that_does_not_exist_makes_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="modelyard train"):
        choose_versions(settings(f"sqlite:///{tmp_path}/none.db"), [])
    assert not (tmp_path / "none.db").exists()
