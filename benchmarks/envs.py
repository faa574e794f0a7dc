"""The environment of each peer under `benchmarks/.envs`, and its package versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.systems import PEERS, System

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import environments
from environments import InstallError

__all__ = ["ENVIRONMENTS", "InstallError", "bin_folder", "peer_programs", "versions"]
ENVIRONMENTS = Path(__file__).resolve().parent / ".envs"
VERSIONS = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]), sep='\\n')"


def bin_folder(system: System) -> Path:
    """Folder of the programs of a system's environment, created if missing or outdated.

    Raises:
        InstallError: It cannot be made.
    """
    if not system.environment:
        return Path(sys.executable).parent
    return peer_programs(system.environment)


def peer_programs(peer: str) -> Path:
    """Folder of the programs of a peer's environment, created if missing or outdated.

    Raises:
        InstallError: It cannot be made.
    """
    return environments.programs(PEERS / peer / "requirements.txt", ENVIRONMENTS / peer)


def versions(system: System, programs: Path) -> dict[str, str]:
    """Versions of a system's `packages`, without build labels."""
    command = [str(programs / "python"), "-c", VERSIONS, *system.packages]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {name: line.split("+")[0] for name, line in zip(system.packages, lines, strict=True)}
