from __future__ import annotations

import pytest

from app.errors import ModelNotFoundError
from app.settings import Settings
from cli.pool_versions import choose_versions, registered_versions

SETTINGS = Settings(model_name="digits", mlflow_tracking_uri="sqlite:///somewhere.db")


@pytest.mark.parametrize(
    ("registered", "asked", "chosen"),
    [
        ([1], [], [1]),
        ([1, 2], [], [1, 2]),
        ([1, 2, 3, 10], [], [3, 10]),
        ([1, 2, 3], [2], [2]),
        ([1, 2, 3], [3, 1, 3], [1, 3]),
    ],
)
def test_asked_versions_are_served_else_the_two_newest(registered, asked, chosen):
    assert choose_versions(SETTINGS, registered, asked) == chosen


def test_version_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ModelNotFoundError) as caught:
        choose_versions(SETTINGS, [1, 2], [2, 7])
    assert "no version 7 of digits" in caught.value.detail
    assert "it has 1, 2" in caught.value.detail


def test_empty_registry_says_how_to_train():
    with pytest.raises(ModelNotFoundError, match="modelyard train"):
        choose_versions(SETTINGS, [], [])


def test_looking_into_a_registry_that_does_not_exist_makes_none(tmp_path):
    settings = Settings(mlflow_tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert registered_versions(settings) == []
    assert not (tmp_path / "none.db").exists()
