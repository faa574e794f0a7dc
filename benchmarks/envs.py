"""Creates an environment per peer with uv under `benchmarks/.envs`, and reads its package versions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.systems import PEERS, System

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = Path(__file__).resolve().parent / ".envs"
INSTALL_LIMIT_S = 900
VERSIONS = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]), sep='\\n')"


class InstallError(Exception):
    """A peer's environment cannot be created; the text is the installer's last line."""


def bin_folder(system: System) -> Path:
    """Folder of the programs of a system's environment, created if missing or outdated.

    Raises:
        InstallError: It cannot be made.
    """
    if not system.environment:
        return Path(sys.executable).parent
    requirements = PEERS / system.environment / "requirements.txt"
    folder = ENVIRONMENTS / system.environment
    stamp = folder / ".installed"
    digest = hashlib.sha256(requirements.read_bytes() + str(folder).encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == digest):
        print(f"installing {', '.join(requirements.read_text().split())}", flush=True)
        _install(folder, requirements)
        stamp.write_text(digest)
    return folder / "bin"


def versions(system: System, programs: Path) -> dict[str, str]:
    """Versions of a system's `packages`, without build labels."""
    command = [str(programs / "python"), "-c", VERSIONS, *system.packages]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {name: line.split("+")[0] for name, line in zip(system.packages, lines, strict=True)}


def _install(folder: Path, requirements: Path) -> None:
    # The project's bootstrap translates pip's configuration for uv and selects the source of PyTorch.
    sys.path.append(str(ROOT / "scripts"))
    import bootstrap
    from workers import pip_config

    config = pip_config.read_pip_config(bootstrap.pip_command())
    environment = {**os.environ, **pip_config.uv_variables(config), "VIRTUAL_ENV": str(folder)}
    uv = str(Path(sys.executable).with_name("uv"))
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], environment)
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
