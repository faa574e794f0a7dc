# ruff: noqa: S603  (the command is a list put together in this file; no shell reads it)
"""Install packages into an image's virtual environment, with uv and what pip is configured with.

    image_packages.py [--torch-backend cpu] <arguments of uv pip install>

Only the Dockerfile calls it. Standard library only, and it stays in no image.
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from workers import pip_config

VENV = Path("/opt/venv")
CACHE = Path("/var/cache/uv")
UV = Path(__file__).resolve().parent / "bin" / "uv"
PIP = "pip"  # of the base image: the virtual environment has none


def main(arguments: list[str]) -> int:
    """Install what the arguments name.

    Returns:
        Exit status of uv.
    """
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--torch-backend", default="")
    own, rest = parser.parse_known_args(arguments)
    config = pip_config.read_pip_config([PIP])
    return subprocess.run(
        [
            *(str(UV), "pip", "install", "--python", str(VENV), "--compile-bytecode"),
            *pip_config.uv_options(config),
            *torch_options(own.torch_backend),
            *rest,
        ],
        # the cache is a mount of its own, and links do not lead from one file system to another
        env={
            **os.environ,
            **pip_config.uv_variables(config),
            "UV_CACHE_DIR": str(CACHE),
            "UV_LINK_MODE": "copy",
        },
        check=False,
    ).returncode


def torch_options(backend: str) -> list[str]:
    """Which build of PyTorch uv takes; none for the CPU build if pip's find-links hold one."""
    if not backend or (backend == "cpu" and find_links_have_torch()):
        return []
    return ["--torch-backend", backend]


def find_links_have_torch() -> bool:
    """Whether pip's find-links, folders or pages, have a wheel of torch for this Python."""
    ask = [PIP, "index", "versions", "--no-index", "torch"]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
