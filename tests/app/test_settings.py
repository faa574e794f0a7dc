"""Settings: read from the environment by their names, and refused by name, value and rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.server_errors import ConfigurationError
from app.settings import ControllerSettings, Settings, WorkerSettings, load, variable_name

ALL = [
    (kind, field) for kind in (Settings, WorkerSettings, ControllerSettings) for field in kind.model_fields
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, field in ALL:
        monkeypatch.delenv(variable_name(kind, field), raising=False)


@pytest.mark.parametrize(
    ("kind", "variable", "value", "rule"),
    [
        (Settings, "MODELYARD_HEARTBEAT_S", "0", "greater than 0"),
        (Settings, "MODELYARD_HEARTBEAT_S", "soon", "valid number"),
        (Settings, "MODELYARD_RESULT_RETENTION_S", "-1", "greater than 0"),
        (WorkerSettings, "WORKER", "0", "greater than or equal to 1"),
        (WorkerSettings, "WORKER", "one", "valid integer"),
        (WorkerSettings, "MODELYARD_DEVICE", "tpu", "pattern"),
        (WorkerSettings, "MODELYARD_MAX_ATTEMPTS", "1", "greater than or equal to 2"),
        (ControllerSettings, "MODELYARD_PORT", "70000", "less than or equal to 65535"),
        (ControllerSettings, "MODELYARD_MAX_BODY_BYTES", "1", "greater than or equal to 1024"),
        (ControllerSettings, "MODELYARD_MAX_WAIT_S", "nan", "less than or equal to 3600"),
        (ControllerSettings, "MODELYARD_ROOT_PATH", "/\N{LATIN SMALL LETTER A WITH DIAERESIS}", "pattern"),
        (ControllerSettings, "MODELYARD_ROOT_PATH", "/a/../b", "pattern"),
        (ControllerSettings, "MODELYARD_BATCH_HOLD_MS", "1001", "less than or equal to 1000"),
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_rule(
    monkeypatch: pytest.MonkeyPatch, kind: type[Settings], variable: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}='{value}'.*({rule})"):
        load(kind)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_PORT", "0")
    monkeypatch.setenv("MODELYARD_HEARTBEAT_S", "0")
    with pytest.raises(
        ConfigurationError, match=r"(MODELYARD_PORT.*MODELYARD_HEARTBEAT_S|HEARTBEAT_S.*PORT)"
    ):
        load(ControllerSettings)


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("REDIS_URL", "redis://h:1/2", "redis_url", "redis://h:1/2"),
        ("MLFLOW_TRACKING_URI", "http://h:5000", "mlflow_tracking_uri", "http://h:5000"),
        ("MODEL_NAME", "Mine", "model_name", "Mine"),
        ("MODEL_VERSION", "champion", "model_version", "champion"),
        ("WORKER", "3", "worker_number", 3),
        ("MODELYARD_TORCH_THREADS", "4", "torch_threads", 4),
        ("MODELYARD_STATE_DIR", "/tmp/x", "state_dir", Path("/tmp/x")),
        ("WORKER", "", "worker_number", None),
    ],
)
def test_a_setting_is_read_from_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(load(WorkerSettings), field) == expected


def test_an_override_wins_over_the_environment_and_none_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER", "3")
    assert load(WorkerSettings, worker_number=4).worker_number == 4
    assert load(WorkerSettings, worker_number=None).worker_number == 3


def test_a_wrong_override_is_refused_too() -> None:
    with pytest.raises(ConfigurationError, match="WORKER=0"):
        load(WorkerSettings, worker_number=0)


@pytest.mark.parametrize(("kind", "field"), ALL)
def test_every_setting_has_a_description_and_a_unit_where_it_is_a_quantity(
    kind: type[Settings], field: str
) -> None:
    info = kind.model_fields[field]
    assert info.description
    if info.annotation is float:
        assert field.endswith(("_s", "_ms", "_fraction")), field


def test_without_a_url_redis_is_the_pools_own_on_a_socket(tmp_path: Path) -> None:
    settings = load(Settings, state_dir=tmp_path)
    assert settings.effective_redis_url == f"unix://{tmp_path.resolve()}/redis.sock"
    assert settings.celery_broker_url == f"redis+socket://{tmp_path.resolve()}/redis.sock"


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("rediss://h", "rediss://h?ssl_cert_reqs=required"),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
    ],
)
def test_celery_is_given_the_same_server_in_its_own_spelling(url: str, broker: str) -> None:
    assert load(Settings, redis_url=url).celery_broker_url == broker


def test_a_socket_path_too_long_for_the_kernel_is_refused(tmp_path: Path) -> None:
    settings = load(Settings, state_dir=tmp_path / ("x" * 110))
    with pytest.raises(ConfigurationError, match="MODELYARD_STATE_DIR"):
        _ = settings.effective_redis_url
