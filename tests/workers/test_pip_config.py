from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workers import pip_config


def test_later_sections_replace_earlier_ones_as_in_pip() -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/from/variable'",
            "global.find-links='/from/file'",
            "install.index-url='https://install.example/simple'",
            "global.index-url='https://global.example/simple'",
            "freeze.timeout='10'",
        ]
    )
    assert pip_config.parse_pip_config(listing) == {
        "find-links": "/from/variable",
        "index-url": "https://install.example/simple",
    }


def test_every_place_that_pip_searches_is_given_to_uv() -> None:
    config = pip_config.parse_pip_config(
        "global.find-links='/a /b'\n"
        "global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'\n"
        "global.trusted-host='one.example'\n"
        "global.no-index='true'\n"
    )
    options = " ".join(pip_config.uv_options(config))
    assert "--find-links /a --find-links /b" in options
    expected = "--extra-index-url https://one.example/simple --extra-index-url https://two.example/simple"
    assert expected in options
    assert "--allow-insecure-host one.example" in options
    assert "--no-index" in options


def test_certificate_and_proxy_become_variables() -> None:
    config = {"cert": "/etc/ca.pem", "proxy": "http://proxy.example:3128"}
    assert pip_config.uv_variables(config) == {
        "SSL_CERT_FILE": "/etc/ca.pem",
        "ALL_PROXY": "http://proxy.example:3128",
    }


def test_real_pip_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels with space-free-name")
    config = pip_config.read_pip_config([sys.executable, "-m", "pip"])
    assert config.get("find-links", "").startswith("/wheels") or config == {}  # an environment without pip


@pytest.mark.parametrize(("tag", "found"), [("cp311", True), ("cp312", False)])
def test_local_torch_wheel_counts_only_for_its_python(tmp_path: Path, tag: str, found: bool) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(b"")
    (tmp_path / "torchvision-0.28.0-cp312-cp312-linux_x86_64.whl").write_bytes(b"")
    config = {"find-links": f"/does/not/exist https://wheels.example {tmp_path}"}
    assert (pip_config.local_torch_wheel(config, tag) is not None) is found
