# ruff: noqa: S603  (the command is a list put together in this file; no shell reads it)
"""Pin every package of every kind of process: ``make lock``. Needs uv in ``.venv`` (``make setup``).

The development lock is resolved first and constrains the others, so a package has one version everywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bootstrap import PYTHON, ROOT, VENV, pip_command
from workers import pip_config  # found by what bootstrap adds to the path

DEVELOPMENT = "dev"
CLIENT = "client"  # a distribution of its own
KINDS = ("controller", "worker", "training", CLIENT, "flower", "all")
GROUPS = ("foreign-clients", "docs")  # dependency groups, each for an environment of its own
HEADER = """\
# Pinned packages of: {kind}. Written by `make lock` from pyproject.toml; do not edit.
# Serves Python 3.11 and newer. The packages that a CUDA build of PyTorch needs are not listed: that build
# pins them itself, and the CPU build needs none of them.
"""
CUDA_PACKAGE = re.compile(r"^(nvidia-|cuda-|triton==)")
TORCH = re.compile(r"^torch==(?P<version>[^+\s;]+)")


def main() -> int:
    """Write all locks."""
    config = pip_config.read_pip_config(pip_command())
    development = ROOT / "requirements" / f"{DEVELOPMENT}.lock"
    compile_lock(DEVELOPMENT, config, constraint=None)
    for kind in KINDS:
        compile_lock(kind, config, constraint=development)
    for kind in GROUPS:
        compile_lock(kind, config, constraint=None)
    return 0


def compile_lock(kind: str, config: dict[str, str], constraint: Path | None) -> None:
    """Resolve one kind of process and write its lock."""
    project, extra = ("client/pyproject.toml", "all") if kind == CLIENT else ("pyproject.toml", kind)
    source = ("--group", kind) if kind in GROUPS else (project, "--extra", extra)
    command = [
        *(str(VENV / "bin" / "uv"), "pip", "compile", *source, "--quiet"),
        *("--no-emit-package", "modelyard-client"),  # installed from its folder, as the server is
        *("--universal", "--python-version", "3.11", "--python", str(PYTHON), "--upgrade"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *pip_config.uv_options(config),
        *(["--constraint", str(constraint)] if constraint else []),
    ]
    environment = {**os.environ, **pip_config.uv_variables(config)}
    resolved = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    target = ROOT / "requirements" / f"{kind}.lock"
    target.write_text(HEADER.format(kind=kind) + tidy(resolved.stdout))
    print(f"wrote {target.relative_to(ROOT)}")


def tidy(resolved: str) -> str:
    """Drop CUDA's packages, and fold torch's builds (``2.13.0``, ``2.13.0+cpu``) into their one version."""
    lines: dict[str, None] = {}  # an ordered set: both builds of torch become the same line
    for line in resolved.splitlines():
        torch = TORCH.match(line)
        if torch:
            lines[f"torch=={torch['version']}"] = None
        elif line and not CUDA_PACKAGE.match(line):
            lines[line] = None
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
