# ruff: noqa: S603  (the command is a list put together by the caller; no shell reads it)
"""Translates pip's configuration on this machine for uv. Standard library only, as it runs before any installation.

uv reads neither pip's configuration files nor its ``PIP_*`` variables. So an index, a folder of wheels or a certificate
that an administrator configured for pip must be passed to uv.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

# pip's option -> uv's option
REPEATED_OPTIONS = {"find-links": "--find-links", "extra-index-url": "--extra-index-url"}
REPEATED_HOSTS = {"trusted-host": "--allow-insecure-host"}
SINGLE_OPTIONS = {"index-url": "--index-url"}
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
SECTIONS = ("global", "install", ":env:")  # later sections override earlier ones, as in pip
TRUE_VALUES = {"1", "true", "yes", "on"}


def read_pip_config(pip: list[str]) -> dict[str, str]:
    """Settings that ``pip install`` would use, by pip's long option name.

    Args:
        pip: Command that runs the pip in question.

    Returns:
        Option name to value; empty if pip cannot list them.
    """
    answer = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    return parse_pip_config(answer.stdout) if answer.returncode == 0 else {}


def parse_pip_config(listing: str) -> dict[str, str]:
    """Parse the output of ``pip config list``, lines such as ``global.find-links='/srv/wheels'``."""
    by_section: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(.*)", line.strip())
        if match:
            section, option, literal = match.groups()
            value = str(ast.literal_eval(literal))
            if value:  # pip ignores empty settings
                by_section[section][option.replace("_", "-")] = value
    return {option: value for section in SECTIONS for option, value in by_section[section].items()}


def uv_options(config: dict[str, str]) -> list[str]:
    """Command-line options for ``uv pip`` that are equivalent to pip's configuration."""
    options = []
    for name, option in {**REPEATED_OPTIONS, **REPEATED_HOSTS}.items():
        for value in config.get(name, "").split():
            options += [option, value]
    for name, option in SINGLE_OPTIONS.items():
        if config.get(name):
            options += [option, config[name]]
    if config.get("no-index", "").lower() in TRUE_VALUES:
        options.append("--no-index")
    # pip takes the best version from all indexes; uv by default uses only the first index that has the package
    return [*options, "--index-strategy", "unsafe-best-match"]


def uv_variables(config: dict[str, str]) -> dict[str, str]:
    """Environment variables for uv that are equivalent to pip's configuration."""
    return {variable: config[name] for name, variable in VARIABLES.items() if config.get(name)}


def local_torch_wheel(config: dict[str, str], python_tag: str) -> Path | None:
    """A torch wheel for this Python in one of pip's configured folders.

    Args:
        config: The result of :func:`read_pip_config`.
        python_tag: A tag such as ``cp311``.
    """
    for place in config.get("find-links", "").split():
        folder = Path(re.sub("^file://", "", place)).expanduser()
        if folder.is_dir():
            for wheel in sorted(folder.glob(f"torch-*-{python_tag}-*.whl")):
                return wheel
    return None
