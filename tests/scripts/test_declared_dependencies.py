"""Every package that the code imports is declared for the process that imports it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT = (
    tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, ROOT / "client")
)
# Which extras a package's modules may rely on. `cli` starts every kind of process; `app` serves them all.
READERS = {
    "app": ["worker", "otel"],
    "controller": ["controller"],
    "workers": ["worker", "onnx"],
    "training": ["training"],
    "client": ["commands", "pictures", "plots", "progress", "tables"],
    "cli": ["controller", "worker", "training", "flower", "local"],
    **{name: ["dev"] for name in ("benchmarks", "faults", "tests")},
}
OURS = {*READERS, "modelyard", "scripts"}
# Programs that run in environments of their own.
ELSEWHERE = (
    ROOT / "benchmarks" / "peers",
    ROOT / "benchmarks" / ".envs",  # what `make bench` has installed
    ROOT / "tests" / "e2e" / "foreign_clients",
)


def declared(package: str) -> set[str]:
    project = CLIENT if package == "client" else SERVER
    lines = [*project["dependencies"], *requirements(project, READERS[package])]
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}


def requirements(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """The requirements of extras, and of the extras that they name."""
    for line in [line for extra in extras for line in project["optional-dependencies"][extra]]:
        yield line
        if named := re.match(r"(modelyard(?:-client)?)\[(.*)\]", line):
            yield from requirements(SERVER if named[1] == "modelyard" else CLIENT, named[2].split(","))


def imported(package: str) -> set[str]:
    names: set[str] = set()
    own = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for file in (ROOT / package).rglob("*.py"):
        if any(file.is_relative_to(each) for each in ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS - own


@cache
def distributions() -> Mapping[str, list[str]]:
    """Installed distributions by the packages in them."""
    return packages_distributions()


@pytest.mark.parametrize("package", READERS)
def test_every_import_is_declared(package: str) -> None:
    known = declared(package)
    undeclared = {
        name
        for name in imported(package)
        if known.isdisjoint(each.lower().replace("_", "-") for each in distributions().get(name, [name]))
    }
    assert not undeclared, f"declare them in pyproject.toml for {package}"


def test_the_server_takes_the_client_of_its_own_version() -> None:
    assert f"modelyard-client=={CLIENT['version']}" in SERVER["dependencies"]
    assert SERVER["version"] == CLIENT["version"]


def test_every_lua_script_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {file for pattern in data["app.redis"] for file in (ROOT / "app" / "redis").glob(pattern)}
    assert packaged == set((ROOT / "app").rglob("*.lua"))
