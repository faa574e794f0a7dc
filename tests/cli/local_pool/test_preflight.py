from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app.server_errors import ConfigurationError
from app.settings import Settings
from cli.local_pool import preflight
from cli.local_pool.programs import Service, Tier
from tests.conftest import RedisServer


def listening_service(port: int) -> Service:
    return Service(
        "flower", Tier.VIEWS, ("true",), lambda pid: True, listens=("127.0.0.1", port, "FLOWER_PORT")
    )


def test_taken_port_is_one_line_that_names_the_service_and_its_variable(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url="")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            preflight.check(settings, [listening_service(port)])
    assert str(port) in caught.value.detail
    assert "flower" in caught.value.detail
    assert "FLOWER_PORT" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_everything_in_the_way_is_named_at_once_a_line_each(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url="")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        services = [listening_service(each.getsockname()[1]) for each in (one, other)]
        with pytest.raises(ConfigurationError) as caught:
            preflight.check(settings, services)
    assert len(caught.value.detail.splitlines()) == 2


def test_port_meant_for_two_services_is_refused_with_both_variables(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    listens = [
        ("127.0.0.1", port, "FLOWER_PORT"),
        ("0.0.0.0", port, "MLFLOW_PORT"),
        ("::1", port, "MODELYARD_PORT"),
    ]
    services = [
        Service(f"service-{each[2]}", Tier.VIEWS, ("true",), lambda pid: True, listens=each)
        for each in listens
    ]
    with pytest.raises(ConfigurationError, match="set FLOWER_PORT or MLFLOW_PORT to another") as caught:
        preflight.check(Settings(state_dir=tmp_path, redis_url=""), services)
    assert "MODELYARD_PORT" not in caught.value.detail  # another address


def test_free_port_passes(tmp_path: Path, free_port: Callable[[], int]) -> None:
    preflight.check(Settings(state_dir=tmp_path, redis_url=""), [listening_service(free_port())])


def test_redis_left_by_an_earlier_run_is_reported_with_how_to_stop_it(redis_server: RedisServer) -> None:
    settings = Settings(state_dir=redis_server.socket.parent, redis_url="")
    with pytest.raises(ConfigurationError, match=r"redis-cli -s .* shutdown"):
        preflight.check(settings, [])


def test_redis_of_the_users_own_that_does_not_answer_is_one_line_without_its_password(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    settings = Settings(state_dir=tmp_path, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(ConfigurationError, match="no Redis answers at REDIS_URL") as caught:
        preflight.check(settings, [])
    assert "secret" not in caught.value.detail


def test_second_pool_in_a_state_directory_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", redis_url="")
    second = preflight.sole_pool(settings)
    with preflight.sole_pool(settings), pytest.raises(ConfigurationError, match="already runs"):
        second.__enter__()
    with preflight.sole_pool(settings):
        pass


def test_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(state_dir=tmp_path / "file" / "state", redis_url="")
    with pytest.raises(ConfigurationError, match="MODELYARD_STATE_DIR"), preflight.sole_pool(settings):
        pass
