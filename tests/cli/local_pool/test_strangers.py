"""A pool that would let strangers in is refused before any process starts."""

from __future__ import annotations

import pytest

from app.api_keys import new_key
from app.server_errors import ConfigurationError
from app.settings import PoolSettings, load
from cli.local_pool.local_pool import PoolPlan


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "FLOWER_BASIC_AUTH"),
        ({"MODELYARD_API_KEYS": "", "MODELYARD_HOST": "0.0.0.0"}, "MODELYARD_ALLOW_ANONYMOUS"),
        ({"FLOWER_BASIC_AUTH": "ops:word", "MLFLOW_HOST": "0.0.0.0"}, "MLflow would listen"),
    ],
)
def test_services_that_would_let_strangers_in_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    keys = {"MODELYARD_API_KEYS": new_key("ops", "operate")[1].line()}
    for name, value in (keys | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=told):
        PoolPlan([]).services(load(PoolSettings))
