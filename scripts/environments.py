# ruff: noqa: S603  (the command is a list put together in this file; no shell reads it)
"""Create virtual environments beside ``.venv``, each from a requirements file, with uv and pip's configuration.

As a program it creates the one whose lock and folder it is given: ``environments.py requirements/x.lock .envs/x``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import bootstrap
from workers import pip_config  # found by what bootstrap adds to the path

INSTALL_LIMIT_S = 900


class InstallError(Exception):
    """An environment cannot be created; the text is the installer's last line."""


def programs(requirements: Path, folder: Path) -> Path:
    """The folder of an environment's programs; it is created if missing or outdated.

    Raises:
        InstallError: It cannot be created.
    """
    stamp = folder / ".installed"
    digest = hashlib.sha256(requirements.read_bytes() + str(folder).encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == digest):
        print(f"Installing {bootstrap.count_packages(requirements)} packages into {folder.name}", flush=True)
        _install(folder, requirements)
        stamp.write_text(digest)
    return folder / "bin"


def _install(folder: Path, requirements: Path) -> None:
    config = pip_config.read_pip_config(bootstrap.pip_command())
    environment = {**os.environ, **pip_config.uv_variables(config), "VIRTUAL_ENV": str(folder)}
    uv = str(bootstrap.VENV / "bin" / "uv")
    _run([uv, "venv", "--quiet", "--clear", "--python", str(bootstrap.PYTHON), str(folder)], environment)
    install = [uv, "pip", "install", *pip_config.uv_options(config)]
    *others, last = bootstrap.torch_choices(config, "")
    for choice in others:
        with suppress(InstallError):
            _run([*install, *choice, "--requirement", str(requirements)], environment)
            return
    _run([*install, *last, "--requirement", str(requirements)], environment)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{Path(command[0]).name} {error}") from None
    if answer.returncode != 0:
        raise InstallError(
            " ".join(answer.stderr.split())[:300] or f"{command[0]} failed without an error message"
        )


if __name__ == "__main__":
    try:
        programs(*(Path(each).resolve() for each in sys.argv[1:]))
    except InstallError as error:
        sys.exit(f"not installed: {error}")
