"""The client is installed alone, beside a user's own code, and needs nothing but what it declares."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from workers import pip_config

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.prefix) / "bin" / "uv"
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
PACKAGES = {"client": {"modelyard"}, "server": {"app", "cli", "controller", "training", "workers"}}
MOST_INSTALLED_BYTES = 120 * 2**20  # nearly all of it NumPy
NEEDS = {"modelyard-client", "httpx", "httpcore", "h11", "anyio", "idna", "certifi", "msgspec", "numpy"}
USE = """
import importlib.metadata, importlib.util, json, sys
import app
from modelyard import Client
with Client(sys.argv[1]) as client:
    predicted = client.predict([[0.7]]).predictions[0].predicted
heavy = ("torch", "celery", "mlflow", "fastapi", "pydantic", "click", "orjson")
print(json.dumps({
    "app": app.OWNER,
    "predicted": predicted,
    "installed": sorted(each.name for each in importlib.metadata.distributions()),
    "heavy": [name for name in heavy if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution, built from a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheels")
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("client", *PACKAGES["server"]):
        shutil.copytree(ROOT / name, source / name, ignore=ignore, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = {}
    for name, folder in (("server", source), ("client", source / "client")):
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(out)], cwd=folder, capture_output=True, text=True, check=True
        )
        built[name] = out / done.stdout.splitlines()[-1]
    return built


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_own_packages_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    files = zipfile.ZipFile(wheels[name]).namelist()
    folders = {file.partition("/")[0] for file in files}
    assert {each for each in folders if not each.endswith(".dist-info")} == PACKAGES[name]
    assert any(file.endswith("/licenses/LICENSE") for file in files)
    assert ("modelyard/py.typed" in files) == (name == "client")


class Environment:
    """A virtual environment in a folder where a user has a package `app` of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        (folder / "app").mkdir()
        (folder / "app" / "__init__.py").write_text("OWNER = 'the user'\n")

    def install(self, *what: str) -> None:
        config = pip_config.read_pip_config([sys.executable, "-m", "pip"])
        command = [str(UV), "pip", "install", "--quiet", "--python", str(self.bin / "python"), *what]
        environment = {**os.environ, **pip_config.uv_variables(config)}
        subprocess.run([*command, *pip_config.uv_options(config)], env=environment, check=True)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installed_bytes(self) -> int:
        [packages] = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    if not UV.exists():
        pytest.skip("uv is not here; `make setup` installs it where it can")
    made = Environment(tmp_path_factory.mktemp("user"))
    made.install(str(wheels["client"]))
    return made


@pytest.mark.usefixtures("double")  # which begins anew, whatever another test made of it
def test_client_alone_predicts_beside_a_package_of_its_user(environment: Environment, url: str) -> None:
    done = environment.run("python", "-c", USE, url)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["app"], said["predicted"], said["heavy"]) == ("the user", 7, [])
    assert set(said["installed"]) - {"typing_extensions"} == NEEDS
    assert environment.installed_bytes < MOST_INSTALLED_BYTES


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("double")
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    environment: Environment, wheels: dict[str, Path], url: str
) -> None:
    done = environment.run("modelyard", "--help")
    assert (done.returncode, last_line(done)) == (
        1,
        "modelyard: the command needs click: pip install 'modelyard-client[commands]'",
    )
    environment.install("click")
    needs_rich = environment.run("modelyard", "predict", "--url", url)
    assert needs_rich.returncode == 1
    assert last_line(needs_rich).endswith("pip install 'modelyard-client[commands,digits]'")

    environment.install(f"modelyard-client[commands] @ {wheels['client'].as_uri()}")
    benchmark = environment.run("modelyard", "benchmark", "--n", "3", "--url", url)
    assert (benchmark.returncode, last_line(benchmark)) == (
        0,
        "no plot: it needs matplotlib: pip install 'modelyard-client[plots]'",
    )
    assert "3 records appended" in benchmark.stdout
    digits = environment.run("modelyard", "predict", "--url", url)
    assert (digits.returncode, last_line(digits).partition("pip")[2]) == (
        1,
        " install 'modelyard-client[digits]'",
    )
    assert "Run the controller" not in environment.run("modelyard", "--help").stdout

    environment.install("--no-deps", str(wheels["server"]))
    assert "Run the controller" in environment.run("modelyard", "--help").stdout
    serve = environment.run("modelyard", "serve")
    assert serve.returncode == 1
    assert last_line(serve).endswith("pip install 'modelyard[controller]'")
