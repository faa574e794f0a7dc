"""Every package that the code imports is declared for the process that imports it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

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
}
OURS = {*READERS, "modelyard", "scripts", "benchmarks", "faults", "tests"}


def declared(package: str) -> set[str]:
    project = CLIENT if package == "client" else SERVER
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in READERS[package] for line in extras[extra])]
    return {re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}


def imported(package: str) -> set[str]:
    names: set[str] = set()
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


@pytest.mark.parametrize("package", READERS)
def test_every_import_is_declared(package: str) -> None:
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported(package)
        if declared(package).isdisjoint(
            each.lower().replace("_", "-") for each in distributions.get(name, [name])
        )
    }
    assert not undeclared, f"declare them in pyproject.toml for {package}"


def test_the_server_takes_the_client_of_its_own_version() -> None:
    assert f"modelyard-client=={CLIENT['version']}" in SERVER["dependencies"]
    assert SERVER["version"] == CLIENT["version"]


def test_every_lua_script_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {file for pattern in data["app.redis"] for file in (ROOT / "app" / "redis").glob(pattern)}
    assert packaged == set((ROOT / "app").rglob("*.lua"))
