# ruff: noqa: S603  (every command is a list put together in this file; no shell reads it)
"""Create ``.venv`` and install the pinned packages: ``make setup``. Standard library only.

uv installs the packages where it can be had (seconds instead of minutes); plain pip is the fallback. A second
run with nothing changed returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from workers import pip_config  # noqa: E402  (standard library only: nothing is installed yet)

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST_PYTHON = (3, 11)
OWN = ("--editable", str(ROOT), "--editable", str(ROOT / "client"))  # the server and the client
COVERED_BY = {
    "all": ("all", "dev"),
    "dev": ("dev",),
}  # the development lock holds everything the other one does


class SetupError(Exception):
    """The set-up cannot go on; the text is one line that says what to do."""


def main() -> int:
    """Run the set-up; every failure is one line on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lock", choices=sorted(COVERED_BY), default="dev", help="requirements/<lock>.lock")
    parser.add_argument(
        "--torch-backend",
        default="",
        help="cpu, auto, cu128, …; default: a wheel in pip's find-links, else cpu",
    )
    arguments = parser.parse_args()
    try:
        set_up(arguments.lock, arguments.torch_backend)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(lock: str, torch_backend: str) -> None:
    """Bring ``.venv`` to the state that the lock and both ``pyproject.toml`` describe."""
    if any(
        stamp_path(kind).is_file() and stamp_path(kind).read_text() == stamp(kind, torch_backend)
        for kind in COVERED_BY[lock]
    ):
        return
    started_at = time.monotonic()
    check_python()
    create_venv()
    pip = pip_command()
    config = pip_config.read_pip_config(pip)
    requirements = ROOT / "requirements" / f"{lock}.lock"
    say(f"Installing {count_packages(requirements)} packages from {requirements.relative_to(ROOT)}")
    if not install_with_uv(pip, config, requirements, torch_backend):
        say("uv cannot be had or failed; installing with pip, which takes some minutes")
        install_with_pip(pip, requirements)
    stamp_path(lock).write_text(stamp(lock, torch_backend))
    say(f"Set up in {time.monotonic() - started_at:.1f} s")


def say(text: str) -> None:
    """Tell what happens next."""
    print(text, flush=True)


def check_python() -> None:
    """Refuse a Python that is too old."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed, {sys.executable} is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; name a newer one: make setup PYTHON=python3.11"
        )


def create_venv() -> None:
    """Create ``.venv``, anew where it is broken, was moved, or was made by another Python version."""
    if venv_is_usable():
        return
    say(f"Creating {VENV} with {sys.executable}")
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    if not has_ensurepip and importlib.util.find_spec("pip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"{sys.executable} has neither pip nor ensurepip; on Debian or Ubuntu: "
            f"apt install python{version}-venv"
        )
    run([sys.executable, "-m", "venv", "--clear", *([] if has_ensurepip else ["--without-pip"]), str(VENV)])


def venv_is_usable() -> bool:
    """Whether ``.venv`` runs, is of this Python version, and its scripts point to where it now lies."""
    if not PYTHON.exists():
        return False
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([str(PYTHON), "-c", probe], capture_output=True, text=True, check=False)
    if answer.stdout.strip() != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return False
    activate = VENV / "bin" / "activate"
    return activate.is_file() and str(VENV) in activate.read_text()


def pip_command() -> list[str]:
    """The venv's own pip or, on a Debian without python3-venv, this Python's pip aimed at the venv."""
    own = subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True, check=False)
    if own.returncode == 0:
        return [str(PYTHON), "-m", "pip"]
    return [sys.executable, "-m", "pip", "--python", str(PYTHON)]


def install_with_uv(pip: list[str], config: dict[str, str], requirements: Path, torch_backend: str) -> bool:
    """Install with uv; False where uv cannot be had or does not succeed."""
    uv = VENV / "bin" / "uv"
    if not uv.exists():
        subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", "uv"], check=False)
    if not uv.exists():
        return False
    environment = {**os.environ, **pip_config.uv_variables(config), "VIRTUAL_ENV": str(VENV)}
    install = [str(uv), "pip", "install", *pip_config.uv_options(config)]

    def succeeds(*arguments: str) -> bool:
        return subprocess.run([*install, *arguments], env=environment, cwd=ROOT, check=False).returncode == 0

    return any(
        succeeds(*choice, "--requirement", str(requirements))
        for choice in torch_choices(config, torch_backend)
    ) and succeeds("--quiet", "--no-deps", *OWN)


def torch_choices(config: dict[str, str], torch_backend: str) -> list[list[str]]:
    """Which build of PyTorch uv takes, as options to try in turn.

    The one asked for; else pip's local wheel; else the CPU build from where PyTorch publishes it and, where
    that cannot be reached, the build of the index, which on Linux is the large one for CUDA.
    """
    if torch_backend:
        return [["--torch-backend", torch_backend, "--reinstall-package", "torch"]]
    python_tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    if pip_config.local_torch_wheel(config, python_tag) is not None:
        return [[]]
    return [["--torch-backend", "cpu"], []]


def install_with_pip(pip: list[str], requirements: Path) -> None:
    """Install with plain pip, which reads its own configuration."""
    run([*pip, "install", "--requirement", str(requirements)])
    run([*pip, "install", "--quiet", "--no-deps", *OWN])


def run(command: list[str]) -> None:
    """Run one step.

    Raises:
        SetupError: It failed; its own output stands above.
    """
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SetupError(f"this step failed, its output stands above: {' '.join(command)}")


def count_packages(requirements: Path) -> int:
    """Number of distinct packages that a lock names."""
    return len(set(re.findall(r"^[\w.-]+", requirements.read_text(), flags=re.MULTILINE)))


def stamp_path(lock: str) -> Path:
    """File that says which lock ``.venv`` was last brought to."""
    return VENV / f".installed-{lock}"


def stamp(lock: str, torch_backend: str) -> str:
    """Digest of everything that decides what is installed."""
    digest = hashlib.sha256()
    projects = (ROOT / "pyproject.toml", ROOT / "client" / "pyproject.toml")
    for path in (ROOT / "requirements" / f"{lock}.lock", *projects):
        digest.update(path.read_bytes())
    digest.update(f"{VENV} {torch_backend}".encode())
    return digest.hexdigest() + "\n"


if __name__ == "__main__":
    sys.exit(main())
