"""Compares a version's required packages with this environment, and decides whether it may be served.

MLflow writes `requirements.txt` and `python_env.yaml` for each model. The serving process reads them without MLflow.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from app.server_errors import ModelRequirementsError
from modelyard.schemas import RequirementDifference

if TYPE_CHECKING:
    from app.settings import WorkerSettings
    from workers.model_lookup import ModelVersion

REQUIREMENTS, PYTHON_ENV = "requirements.txt", "python_env.yaml"
# Libraries whose name differs from their flavor.
LIBRARIES = {"pytorch": "torch", "sklearn": "scikit-learn", "onnx": "onnxruntime"}
# Builds of one library under several names: each provides the same module.
BUILDS = (
    ("xgboost", "xgboost-cpu"),
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "intel-tensorflow"),
    ("psycopg2", "psycopg2-binary"),
    ("faiss-cpu", "faiss-gpu"),
)
NAMED = 12  # maximum number of differences named in one line


def read_requirements(folder: str) -> list[Requirement]:
    """The requirements of a model that apply to this environment; options, paths and URLs are skipped.

    Args:
        folder: The model's files.
    """
    path = Path(folder, REQUIREMENTS)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            requirement = Requirement(re.split(r"(?:^|\s)#|\s--", line, maxsplit=1)[0].strip())
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            found.append(requirement)
    return found


def required_python(folder: str) -> str:
    """The Python version with which a model was logged, empty if unknown."""
    path = Path(folder, PYTHON_ENV)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"""^python:\s*["']?(\d+\.\d+[\w.]*)""", text, re.MULTILINE)
    return found[1] if found else ""


def differences(folder: str) -> tuple[RequirementDifference, ...]:
    """The requirements of a model that this environment lacks or has in another version.

    Another build of the same library, such as xgboost-cpu for xgboost, is not a difference.

    Args:
        folder: The model's files.
    """
    found = []
    wanted, here = required_python(folder), platform.python_version()
    if wanted and wanted.split(".")[:2] != here.split(".")[:2]:
        found.append(RequirementDifference("python", wanted, here))
    for each in read_requirements(folder):
        installed = _installed(each.name)
        if installed is None or not each.specifier.contains(installed, prereleases=True):
            found.append(RequirementDifference(each.name, str(each.specifier), installed))
    return tuple(found)


def described(found: Sequence[RequirementDifference]) -> str:
    """The differences in one line."""
    named = [f"{each.package}{each.required} ({each.installed or 'not'} installed)" for each in found[:NAMED]]
    rest = len(found) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def obstacles(found: ModelVersion, settings: WorkerSettings) -> list[ModelRequirementsError]:
    """Why a version cannot be served here: the library of its flavor is missing or has another major version."""
    if settings.env_manager != "local" or settings.allow_major_mismatch:
        return []
    libraries = {canonicalize_name(LIBRARIES.get(flavor, flavor)) for flavor in found.flavors}
    others = [
        each
        for each in differences(found.path)
        if not libraries.isdisjoint(_builds(each.package)) and _is_other_major(each)
    ]
    if not others:
        return []
    return [
        ModelRequirementsError(
            f"{found.uri} was logged with {described(others)}; expected the same major version. "
            f"Install it (pip install {_command(others)}), set MODELYARD_ENV_MANAGER=uv to serve the version in an "
            "environment of its own, or set MODELYARD_ALLOW_MAJOR_MISMATCH=true to try it as it is"
        )
    ]


def _command(others: Sequence[RequirementDifference]) -> str:
    return " ".join(f'"{each.package}{each.required}"' for each in others)


def _builds(package: str) -> tuple[str, ...]:
    """All names of the library that this package provides, its own first."""
    name = canonicalize_name(package)
    return (name, *(each for builds in BUILDS if name in builds for each in builds if each != name))


def _installed(package: str) -> str | None:
    for name in _builds(package):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _is_other_major(difference: RequirementDifference) -> bool:
    if difference.installed is None:
        return True
    named = Requirement(difference.package + difference.required).specifier
    try:
        majors = {Version(each.version.removesuffix(".*")).major for each in named}
        return Version(difference.installed).major not in majors
    except InvalidVersion:  # `===` accepts any text
        return True
