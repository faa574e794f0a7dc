# ruff: noqa: S603, S606  (every command is a list put together in this file; no shell reads it)
"""A separate environment for a version, built by uv from its requirements: `MODELYARD_ENV_MANAGER=uv`.

A worker looks up its version in Modelyard's environment and builds the version's environment. Then it replaces itself
by the same worker there (exec, so the process id stays). Modelyard's code is added to the path; its required packages
are added to the model's requirements, so that a conflict fails the build. An environment is complete if its
`built.json` exists; its name is a digest of all build inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import IO, NoReturn

import msgspec
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import app
import modelyard
import workers
from app.model_files import loading
from app.server_errors import ConfigurationError, ModelEnvironmentError, ModelError
from app.settings import WorkerSettings
from workers import model, pip_config
from workers.handover import Handover, Refusal
from workers.model_lookup import ModelVersion
from workers.process.prefork_supervisor import signal_at_parents_death
from workers.requirements_check import PYTHON_ENV, REQUIREMENTS, read_requirements, required_python

logger = logging.getLogger(__name__)
CODE = (app, workers, modelyard)  # the packages that a worker imports
NOT_NEEDED = ("modelyard-client", "rich")  # requirements on the path, or only for commands
LOADED_BY = {
    "pt2": ("torch",),
    "skops": ("skops", "mlflow"),
    "onnx": ("onnxruntime", "mlflow"),
}  # how a model loads -> packages, else MLflow
CONSTRAINTS, BUILT = "constraints.txt", "built.json"
FILE_ENDINGS = (".whl", ".tar.gz", ".zip", ".txt")
TORCH_BACKEND = "UV_TORCH_BACKEND"
# First words of uv's error messages, and the decoration of their lines.
ERROR, DECORATION = ("error", "\N{MULTIPLICATION SIGN}"), "\N{MULTIPLICATION SIGN}╰─▶│ "
NARRATION = re.compile(r"^\s*[+~-] ")  # one line per package that uv installs
FAILED = ".failed"  # suffix of the note that says why an environment could not be built
# Process managers start a failed worker again within seconds, and each build asks the package index anew.
RETRY_S = 120
SAID_CHARACTERS = 300  # of uv's reason; all of it is in the log


@dataclass(frozen=True)
class Plan:
    """The build inputs of an environment.

    Attributes:
        python: Path or version, for uv.
        own: Requirements of Modelyard's worker.
        digest: Digest of everything that determines the installed packages.
    """

    python: str
    own: tuple[str, ...]
    digest: str


def become(found: ModelVersion, settings: WorkerSettings, folder: str) -> NoReturn:
    """Replace this process by a worker in the version's environment, which is built if it is missing.

    Args:
        found: The version to serve.
        folder: Folder for temporary files, which the new worker removes.

    Raises:
        ModelEnvironmentError: The environment cannot be built.
        ConfigurationError: uv is missing, or the folder for environments cannot be written.
    """
    python = build(found, settings, may_repeat=False)
    with _handed_over(found, settings, folder) as file:
        os.set_inheritable(file.fileno(), True)
        logger.info("%s is served in %s", found.uri, python.parent.parent)
        os.execve(python, _command(python, file), _variables(python, folder))


def try_loading(found: ModelVersion, settings: WorkerSettings) -> ModelError | None:
    """Load a version in its environment, which is built first if it is missing; returns the error, or None."""
    try:
        python = build(found, settings)
    except ModelEnvironmentError as error:
        return error
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-") as folder,
        _handed_over(found, settings, folder, is_trial=True) as file,
    ):
        ended = subprocess.run(
            _command(python, file),
            env=_variables(python, folder),
            pass_fds=[file.fileno()],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        file.seek(0)
        answer = file.read()
    if ended.returncode:
        return ModelEnvironmentError(
            f"{found.uri} ends its process with status {ended.returncode} while it loads"
        )
    refusal = msgspec.msgpack.decode(answer, type=Refusal)
    kinds = {each.code: each for each in ModelError.__subclasses__()}
    return kinds.get(refusal.code, ModelError)(refusal.detail) if refusal.code else None


def prepare(settings: WorkerSettings) -> None:
    """Build the environment of the version that the settings name, for workers that start later.

    Raises:
        ModelError: The version does not exist, cannot be served, or its environment cannot be built.
        UnavailableError: MLflow does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        found = model.find(settings, folder)
        if settings.env_manager == "uv":
            logger.info("%s has its environment in %s", found.uri, build(found, settings).parent.parent)


def build(found: ModelVersion, settings: WorkerSettings, *, may_repeat: bool = True) -> Path:
    """Path of the Python of a version's environment. One process builds the environment while others wait.

    Args:
        may_repeat: Whether to repeat a build that has just failed.

    Raises:
        ModelEnvironmentError: It cannot be built.
        ConfigurationError: uv is missing, or the folder for environments cannot be written.
    """
    plan = _plan(found)
    folder = settings.environments_dir or _user_cache() / "modelyard" / "environments"
    place = folder / plan.digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _sole(FileLock(f"{place}.lock"), found):
            if not _is_built(place):
                if not may_repeat:
                    _require_no_new_failure(place, found)
                _build(place, plan, found)
            (place / BUILT).touch()  # tells when it was last used
    except OSError as error:
        raise ConfigurationError(
            f"the folder for environments {folder} cannot be written ({error.strerror or error}); set "
            "MODELYARD_ENVIRONMENTS_DIR to one that can"
        ) from None
    return _python_of(place)


@contextmanager
def _sole(lock: FileLock, found: ModelVersion) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process builds the environment of %s; waiting for it", found.uri)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _plan(found: ModelVersion) -> Plan:
    folder = Path(found.path)
    if not (folder / REQUIREMENTS).is_file():
        raise ModelEnvironmentError(
            f"{found.uri} has no {REQUIREMENTS}, which MLflow writes beside a model and an environment is built from; "
            "log the model again, or set MODELYARD_ENV_MANAGER=local"
        )
    python, own = _python(found), _own_requirements(found)
    digest = hashlib.sha256()
    for name in (REQUIREMENTS, CONSTRAINTS, PYTHON_ENV, *_named_files(folder)):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
    digest.update(repr((python, sys.version, sys.platform, own, os.environ.get(TORCH_BACKEND))).encode())
    return Plan(python, own, digest.hexdigest()[:32])


def _named_files(folder: Path) -> list[str]:
    """Wheels and other files that the requirements name: another model may have others of the same name."""
    words = re.split(r"[\s=]+", (folder / REQUIREMENTS).read_text(errors="replace"))
    return [word for word in words if word.endswith(FILE_ENDINGS)]


def _python(found: ModelVersion) -> str:
    """This Python if the model was logged with the same minor version, else one that uv finds or downloads."""
    wanted = required_python(found.path)
    ours = sysconfig.get_python_version()
    minor = ".".join(wanted.split(".")[:2]) or ours
    allowed = metadata("modelyard")["Requires-Python"]
    if not SpecifierSet(allowed).contains(minor):
        raise ModelEnvironmentError(
            f"{found.uri} was logged with Python {wanted}, and Modelyard's worker takes {allowed}; log the model with "
            "such a Python, or set MODELYARD_ENV_MANAGER=local"
        )
    return sys.executable if minor == ours else minor


def _own_requirements(found: ModelVersion) -> tuple[str, ...]:
    """The worker's requirements in addition to the model's requirements."""
    lines = [Requirement(line) for each in ("modelyard", "modelyard-client") for line in requires(each) or []]
    # the model determines NumPy's version
    own = {"numpy" if each.name == "numpy" else str(each) for each in lines if not each.marker}
    own = {each for each in own if Requirement(each).name not in NOT_NEEDED}
    named = [each.name for each in read_requirements(found.path)]
    for loader in LOADED_BY.get(loading(found.flavors, Path(found.path)).kind, ("mlflow",)):
        if not any(name.startswith(loader) for name in named):  # mlflow-skinny is sufficient, too
            own.add(loader)
    return (*sorted(own), "packaging")


def _is_built(place: Path) -> bool:
    return (place / BUILT).is_file() and _python_of(place).exists()  # its Python may have been removed since


def _require_no_new_failure(place: Path, found: ModelVersion) -> None:
    note = place.with_suffix(FAILED)
    if not note.exists():
        return
    left_s = note.stat().st_mtime + RETRY_S - time.time()
    if left_s > 0:
        logger.info(
            "the environment of %s is not built again for %d s; `modelyard worker --prepare` builds it at once",
            *(found.uri, left_s),
        )
        raise ModelEnvironmentError(note.read_text())


def _build(place: Path, plan: Plan, found: ModelVersion) -> None:
    shutil.rmtree(place, ignore_errors=True)  # leftovers of a killed process
    uv, config = _uv(), _pip_config()
    logger.info("building an environment for %s in %s", found.uri, place)
    variables = {**os.environ, **pip_config.uv_variables(config)}
    install = [uv, "pip", "install", "--python", str(_python_of(place)), *pip_config.uv_options(config)]
    wanted = ["--requirement", REQUIREMENTS, *plan.own]
    if sys.dont_write_bytecode:  # otherwise every start compiles thousands of files
        wanted.append("--compile-bytecode")
    try:
        problem = _run([uv, "venv", "--python", plan.python, str(place)], found.path, variables)
        remedy = f"correct its {REQUIREMENTS} (mlflow.models.update_model_requirements)"
        if problem and plan.python != sys.executable:
            remedy = f"install Python {plan.python} on this machine"
        for choice in () if problem else _torch_choices(config, found):
            problem = _run([*install, *choice, *wanted], found.path, variables)
            if not problem:
                break
        if problem:
            text = (
                f"the environment of {found.uri} cannot be built: {problem}; {remedy}, or set "
                "MODELYARD_ENV_MANAGER=local"
            )
            place.with_suffix(FAILED).write_text(text)
            raise ModelEnvironmentError(text)
        place.with_suffix(FAILED).unlink(missing_ok=True)
        described = {
            "model": found.uri,
            "requirements": [*map(str, read_requirements(found.path)), *plan.own],
        }
        (place / BUILT).write_text(json.dumps(described, indent=1))
    except BaseException:  # SIGTERM as well
        shutil.rmtree(place, ignore_errors=True)
        raise


def _torch_choices(config: dict[str, str], found: ModelVersion) -> list[list[str]]:
    """PyTorch builds for uv to try in turn: the build for this GPU or for the CPU, else the index's default."""
    if (
        os.environ.get(TORCH_BACKEND)
        or all(each.name != "torch" for each in read_requirements(found.path))
        or pip_config.local_torch_wheel(config, f"cp{sysconfig.get_config_var('py_version_nodot')}")
    ):
        return [[]]
    return [["--torch-backend", "auto"], []]


def _run(command: list[str], folder: str, variables: dict[str, str]) -> str:
    """Run uv with its output as log lines; returns its output if it failed, else an empty string."""
    said = []
    with subprocess.Popen(
        command,
        cwd=folder,  # requirements may name files of the model
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=signal_at_parents_death(signal.SIGKILL),  # a dead worker's lock is free
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                said.append(line.strip())
                if not NARRATION.match(line):
                    logger.info("uv: %s", line.strip())
        except BaseException:
            process.kill()
            raise
    return "" if process.returncode == 0 else reason_of(said) or f"uv ended with status {process.returncode}"


def reason_of(said: Sequence[str]) -> str:
    """The error message in uv's output, in one line of limited length."""
    begin = next((n for n, line in enumerate(said) if line.startswith(ERROR)), 0)
    text = " ".join(line.lstrip(DECORATION).removeprefix("error: ") for line in said[begin:] if line)
    line = " ".join(text.split()).replace(" cause: ", ": ").rstrip(".")
    if len(line) <= SAID_CHARACTERS:
        return line
    half = SAID_CHARACTERS // 2  # uv often concludes with the requirements that contradict each other
    return f"{line[:half]} … {line[-half:]} (the log above has all of it)"


def _uv() -> str:
    found = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if not found:
        raise ConfigurationError(
            "MODELYARD_ENV_MANAGER=uv needs the program uv, which is not there; install it (pip install uv), or set "
            "MODELYARD_ENV_MANAGER=local"
        )
    return found


def _pip_config() -> dict[str, str]:
    """Configuration of pip, unless uv's own variables override it."""
    own = [sys.executable, "-m", "pip"]
    has_own = subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0
    # As in an image.
    found = pip_config.read_pip_config(own if has_own or not shutil.which("pip") else ["pip"])
    return {
        name: value
        for name, value in found.items()
        if not os.environ.get(f"UV_{name.upper().replace('-', '_')}")
    }


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _python_of(place: Path) -> Path:
    return place / "bin" / "python"


@contextmanager
def _handed_over(
    found: ModelVersion, settings: WorkerSettings, folder: str, *, is_trial: bool = False
) -> Iterator[IO[bytes]]:
    """Write the handover to an unnamed file, because the settings may contain a password."""
    inside = settings.model_copy(update={"env_manager": "local"}).model_dump(mode="json")
    with tempfile.TemporaryFile() as file:
        file.write(msgspec.msgpack.encode(Handover(inside, found, folder, is_trial)))
        file.seek(0)
        yield file


def _command(python: Path, file: IO[bytes]) -> list[str]:
    return [str(python), "-P", "-m", "workers.in_environment", str(file.fileno())]


def _variables(python: Path, folder: str) -> dict[str, str]:
    """Variables for a Python that imports Modelyard's packages first, and nothing else from their folders."""
    code = Path(folder, "code")
    code.mkdir()
    for package in CODE:
        assert package.__file__
        (code / package.__name__).symlink_to(Path(package.__file__).parent)
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    own = {"PYTHONPATH": str(code), "VIRTUAL_ENV": str(python.parent.parent), "PATH": path}
    return {name: value for name, value in os.environ.items() if name != "PYTHONHOME"} | own
