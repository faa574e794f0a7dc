"""Addresses of servers: their URLs, and one line for each reason why one cannot listen."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from cli.local_pool.listening import refusal
from modelyard.commands.controller_option import local_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("localhost", "http://localhost:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::1", "http://[::1]:9000"),
        ("::", "http://[::1]:9000"),
        ("10.1.2.3", "http://10.1.2.3:9000"),
        ("fd00::5", "http://[fd00::5]:9000"),
    ],
)
def test_local_url_brackets_ipv6_and_goes_to_loopback_for_every_address(host: str, url: str) -> None:
    assert local_url(host, 9000) == url


@pytest.mark.parametrize(
    ("host", "port", "told"),
    [
        ("192.0.2.1", 9000, "MODELYARD_HOST=192.0.2.1: .* belongs to another machine"),
        ("nowhere.invalid", 9000, "MODELYARD_HOST=nowhere.invalid: .* is unknown"),
        ("a" * 70 + ".b", 9000, "is unknown"),
        ("127.0.0.1", 65536, "above 65535; set MODELYARD_PORT"),
    ],
)
def test_address_that_cannot_be_used_is_named_with_its_variable(host: str, port: int, told: str) -> None:
    found = refusal("the controller", host, port, "MODELYARD_PORT")
    assert re.search(told, found), found
    assert "\n" not in found


def test_wildcard_of_ipv6_is_free_beside_a_server_of_ipv4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert refusal("x", "::", port, "MODELYARD_PORT") == ""
        assert "is taken" in refusal("x", "0.0.0.0", port, "MODELYARD_PORT")


def modelyard(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"REDIS_URL": "foo"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://h:1/0?nonsense=1"}, "the unknown option"),
        ({"MLFLOW_TRACKING_URI": "bogus://x"}, "MLFLOW_TRACKING_URI=bogus://x is not an MLflow registry"),
        ({"MODELYARD_HOST": "192.0.2.1", "MODELYARD_ALLOW_ANONYMOUS": "true"}, "belongs to another machine"),
        ({"REDIS_PASSWORD_FILE": "/nowhere/password"}, "REDIS_PASSWORD_FILE"),
    ],
)
def test_controller_that_cannot_serve_is_one_line(variables: dict[str, str], told: str) -> None:
    done = modelyard("serve", **{"REDIS_URL": "redis://127.0.0.1:1/0"} | variables)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "variable", "name"),
    [("serve", "MODELYARD_PORT", "the controller"), ("flower", "FLOWER_PORT", "Flower")],
)
def test_server_whose_port_is_taken_is_one_line(command: str, variable: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = modelyard(command, REDIS_URL="redis://127.0.0.1:1/0", **{variable: str(port)})
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert (
        f"port {port} of {name} is taken; stop the process that listens there, or set {variable}"
        in done.stderr
    )
