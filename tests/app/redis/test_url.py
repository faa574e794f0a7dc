"""Where Redis is: with its password for clients, without it for people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.connection import parse_url

from app.celery_app import create_celery
from app.redis.client import connect
from app.redis.url import Sentinels, sentinels, server_url, without_secrets
from app.server_errors import ConfigurationError
from app.settings import Settings, load

SECRET = "s3cret"


def test_the_password_of_a_file_is_part_of_the_urls_but_of_no_text_for_people(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/w:rd?\n")
    settings = Settings(redis_url="redis://worker@h:1/2", redis_password_file=file)
    for url in (settings.effective_redis_url, settings.celery_broker_url):
        assert (parse_url(url)["username"], parse_url(url)["password"]) == ("worker", "p@ss/w:rd?")
    assert settings.shown_redis_url == "redis://h:1/2"


@pytest.mark.parametrize(
    ("url", "content", "text"),
    [
        ("redis://a:b@h", "x", "remove one of them"),
        ("redis://h", None, "cannot be read"),
        ("redis://h", " \n", "is empty"),
    ],
)
def test_a_password_file_that_does_not_serve_is_named(
    tmp_path: Path, url: str, content: str | None, text: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"REDIS_PASSWORD_FILE.*{text}"):
        Settings(redis_url=url, redis_password_file=file).effective_redis_url  # noqa: B018


def test_celery_checks_certificates_unless_told_otherwise() -> None:
    assert Settings(redis_url="rediss://h/1").celery_tls == {"ssl_cert_reqs": "required"}
    settings = Settings(redis_url="rediss://h:1?db=3&ssl_ca_certs=/ca.pem&ssl_cert_reqs=none")
    assert settings.celery_tls == {"ssl_cert_reqs": "none", "ssl_ca_certs": "/ca.pem"}
    assert settings.celery_broker_url == "rediss://h:1/3?ssl_cert_reqs=none&ssl_ca_certs=%2Fca.pem"
    assert Settings(redis_url="redis://h").celery_tls == {}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "redis://h/0?protocol=2",
            "the unknown option 'protocol'; expected one of db, password, username",
        ),
        ("redis://h/0?decode_responses=True", "'decode_responses'"),
        ("redis://h/0?socket_timeout=0.001", "MODELYARD_REDIS_TIMEOUT_S"),
        ("redis://h/0?ssl_cert_reqs=none", "'ssl_cert_reqs'"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "expected required, optional, none"),
        ("unix:///redis.sock?db=zero", "expected a number"),
    ],
)
def test_an_option_of_a_url_that_does_not_serve_is_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        connect(Settings(redis_url=url))
    with pytest.raises(ConfigurationError, match=says):
        Settings(redis_url=url).celery_broker_url  # noqa: B018


def test_a_login_in_the_query_is_one_for_celery_too() -> None:
    for url in ("redis://h:1/2?username=a&password=p@s", "unix:///redis.sock?username=a&password=p@s"):
        settings = Settings(redis_url=url)
        for each in (settings.effective_redis_url, settings.celery_broker_url):
            assert "a:p%40s@" in each


def test_the_database_may_stand_in_the_query() -> None:
    for url in ("redis://h/?db=3", "unix:///redis.sock?db=3"):
        assert connect(Settings(redis_url=url)).get_connection_kwargs()["db"] == 3


def test_sentinels_are_one_url_each_for_celery_and_one_server_for_redis_py(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s/cret")
    settings = load(
        Settings,
        redis_url="sentinel://worker:p%40ss@a,b:1/mymaster/2?sentinel_username=u",
        redis_sentinel_password_file=tmp_path / "password",
    )
    assert settings.celery_broker_url == "sentinel://worker:p%40ss@a:26379/2;sentinel://worker:p%40ss@b:1/2"
    assert server_url(settings.effective_redis_url) == "redis://worker:p%40ss@a/2"
    options = create_celery(settings).conf.broker_transport_options
    assert options["master_name"] == "mymaster"
    assert options["sentinel_kwargs"].items() >= {"username": "u", "password": "s/cret"}.items()
    assert settings.shown_redis_url == "sentinel://a,b:1/mymaster/2"


def test_tls_of_sentinels_is_tls_to_them_and_to_redis() -> None:
    settings = load(Settings, redis_url="sentinels://a/mymaster?ssl_ca_certs=/ca.pem")
    expected = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}
    assert settings.celery_tls == expected
    assert sentinels(settings.effective_redis_url) == Sentinels(
        "mymaster", (("a", 26379),), (("ssl", True), *expected.items())
    )
    assert server_url(settings.effective_redis_url) == "rediss://a?ssl_ca_certs=%2Fca.pem"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sentinel://a,b", "does not name Sentinels and a primary; expected sentinel://host:port,host:port"),
        ("sentinel://a,/mymaster", "does not name Sentinels"),
        ("sentinel://a/mymaster/first", "does not name Sentinels"),
        ("sentinel://a:1,b:port/mymaster", "is not a URL"),
        ("sentinel://a/mymaster?db=1", "unknown option 'db'"),
        ("sentinel://a/mymaster?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
    ],
)
def test_sentinels_in_another_form_are_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(Settings, redis_url=url)


def test_a_password_of_sentinels_without_sentinels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    settings = Settings(redis_url="redis://h", redis_sentinel_password_file=tmp_path / "password")
    with pytest.raises(ConfigurationError, match="REDIS_SENTINEL_PASSWORD_FILE is set"):
        settings.effective_redis_url  # noqa: B018


BAD_URLS = [
    f"redis://user:{SECRET}@localhost:port/0",
    f"redis://user:{SECRET}@[localhost/0",
    f"http://user:{SECRET}@localhost/0",
    f"redis://user:{SECRET}@localhost:1/zero",
    f"user:{SECRET}@localhost",
    f"redis://localhost:1/0?password={SECRET}",
    f"redis://:{SECRET}/with-a-slash@localhost:1/0",
    f"unix://user:{SECRET}@/nowhere/redis.sock",
    f"sentinel://user:{SECRET}@a,b/mymaster?sentinel_password={SECRET}&nonsense=1",
    f"sentinel://user:{SECRET}@a:port/mymaster",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_no_message_about_a_url_holds_its_password(url: str) -> None:
    assert SECRET not in without_secrets(url)
    assert SECRET not in refusal(url)


def refusal(url: str) -> str:
    """What a person is told, if anything: some are URLs of a kind."""
    try:
        connect(Settings(redis_url=url))
    except ConfigurationError as error:
        return error.detail
    return ""


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("serve", BAD_URLS[0]),
        ("worker", BAD_URLS[0]),
        ("worker", f"redis://user:{SECRET}@127.0.0.1:1/0"),
        ("flower", BAD_URLS[0]),
    ],
)
def test_no_command_shows_the_password_of_a_redis_that_it_cannot_use(
    tmp_path: Path, command: str, url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", command],
        cwd=tmp_path,
        env=os.environ | {"REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "REDIS_URL" in done.stderr
    assert SECRET not in done.stdout + done.stderr
