"""API keys: made, written down, read, recognised; and where a server must not listen without."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.api_keys import (
    KEYS_REMEDY,
    ApiKey,
    check_exposure,
    holder,
    is_loopback,
    new_key,
    read_keys,
)
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings


def settings(**fields: object) -> ControllerSettings:
    return ControllerSettings.model_validate({"redis_url": "", **fields})


def test_a_new_key_is_recognised_by_the_line_that_is_written_down_and_no_other_is(tmp_path: Path) -> None:
    (shop_key, shop), (ops_key, ops) = new_key("shop", "predict"), new_key("ops", "operate")
    file = tmp_path / "keys"
    file.write_text(f"# who may what\n{shop.line()}  # the web shop\n\n")
    known = read_keys(settings(api_keys_file=file, api_keys=ops.line()))
    assert known == (shop, ops)
    assert holder(known, shop_key.encode()) == shop
    assert holder(known, ops_key.encode()) == ops
    for wrong in (b"", shop_key[:-1].encode(), shop.digest, shop.digest.hex().encode(), b"\xff"):
        assert holder(known, wrong) is None


def test_no_two_keys_are_alike_and_none_stands_in_its_line() -> None:
    made = [new_key("shop", "predict") for _ in range(100)]
    assert len({key for key, _ in made}) == 100
    assert not any(key in known.line() for key, known in made)
    assert all(len(key) >= 43 for key, _ in made)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a,b", "a#b", "ä", "x" * 65, "a\n"])
def test_a_name_that_could_not_be_read_back_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64"):
        new_key(name, "predict")


@pytest.mark.parametrize(
    "line",
    [
        "shop predict",
        "shop admin sha256:" + "a" * 64,
        "shop predict " + "a" * 64,
        "shop predict sha256:" + "a" * 63,
        "shop predict sha256:" + "A" * 64,
        "modelyard_secret",
    ],
)
def test_a_malformed_line_is_named_by_its_number_and_never_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{new_key('a', 'predict')[1].line()}\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2: expected") as caught:
        read_keys(settings(api_keys_file=file))
    assert str(file) in caught.value.detail
    assert line not in caught.value.detail


@pytest.mark.parametrize("text", ["", "\n# none yet\n", " , "])
def test_a_source_without_a_key_is_an_error_and_not_an_open_door(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="holds no key"):
        read_keys(settings(api_keys_file=file))


def test_a_file_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_keys(settings(api_keys_file=tmp_path / "keys"))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_keys(settings(api_keys_file=tmp_path / "keys"))


def test_the_same_key_twice_is_an_error() -> None:
    digest = new_key("a", "predict")[1].digest
    lines = ",".join(ApiKey(name, "predict", digest).line() for name in ("a", "b"))
    with pytest.raises(ConfigurationError, match="twice"):
        read_keys(settings(api_keys=lines))


def test_where_nothing_is_set_there_are_no_keys() -> None:
    assert read_keys(settings()) == ()


def test_what_is_read_of_keys_is_not_shown_with_the_settings() -> None:
    line = new_key("a", "predict")[1].line()
    assert line not in repr(settings(api_keys=line))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    check_exposure("it", host, False, KEYS_REMEDY, settings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org"])
def test_elsewhere_strangers_are_let_in_only_where_that_is_said(host: str) -> None:
    with pytest.raises(ConfigurationError, match="MODELYARD_ALLOW_ANONYMOUS=true"):
        check_exposure("it", host, False, KEYS_REMEDY, settings())
    check_exposure("it", host, True, KEYS_REMEDY, settings())
    check_exposure("it", host, False, KEYS_REMEDY, settings(allow_anonymous=True))
