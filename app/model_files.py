"""Which model files load without unpickling: `torch.export` archives (`pt2`) that bring no Python code of their own.

Everything else (pickled PyTorch and scikit-learn models, and whatever `mlflow.pyfunc` loads) runs code that the
model's author chose, as soon as it is loaded. So does a pickled tensor inside an archive, unless whoever loads it
makes PyTorch refuse that.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import ModelNotAllowedError

PT2_FILE = "model.pt2"
PICKLED_FILE = "model.pth"  # what MLflow takes first where a folder has both
TORCH_LOADER = "mlflow.pytorch"
# Below an archive's root: compiled code, and constants that are objects rather than tensors.
COMPILED = "data/aotinductor/"
CONSTANTS, TENSOR_CONSTANTS = "data/constants/", ("tensor_", "model_constants_config.json", "model.pt")


def require_pt2(flavors: Mapping[str, Any], folder: Path, uri: str) -> None:
    """Let only `pt2` pass.

    Args:
        flavors: Of the model's MLmodel file.
        folder: The model, downloaded.
        uri: What a person calls it.

    Raises:
        ModelNotAllowedError: It is anything else.
    """
    reason = _reason(flavors, folder)
    if reason:
        raise refusal(uri, reason)


def pt2_file(flavors: Mapping[str, Any], folder: Path) -> Path:
    """The one file of a model that passes."""
    return folder / str(flavors["pytorch"].get("model_data", "")) / PT2_FILE


def refusal(uri: str, reason: str) -> ModelNotAllowedError:
    """What a person is told who wants a model that does not pass."""
    return ModelNotAllowedError(
        f"{uri} {reason}, so that loading it may run any code; log it with mlflow.pytorch and "
        'serialization_format="pt2", or, where everyone who can write to the registry is trusted with this '
        "process, set MODELYARD_ALLOW_PICKLE_MODELS=true"
    )


def _reason(flavors: Mapping[str, Any], folder: Path) -> str:
    """What keeps a model from passing; empty where nothing does."""
    torch, pyfunc = flavors.get("pytorch"), flavors.get("python_function", {})
    if torch is None:
        return f"is pickled or code ({', '.join(sorted(flavors)) or 'no flavour'}), not a pt2 file"
    if torch.get("code") or pyfunc.get("code") or pyfunc.get("loader_module", TORCH_LOADER) != TORCH_LOADER:
        return "brings Python code of its own"
    file = pt2_file(flavors, folder)
    if file.with_name(PICKLED_FILE).exists() or not zipfile.is_zipfile(file):
        return "is pickled, not a pt2 file"
    with zipfile.ZipFile(file) as archive:
        # PyTorch finds records whatever their case.
        records = [name.partition("/")[2].lower() for name in archive.namelist()]
    return "is a pt2 file with code or a pickle inside" if any(map(_is_code, records)) else ""


def _is_code(record: str) -> bool:
    """Whether PyTorch would run or unpickle a record without asking whether it may."""
    if record.startswith(CONSTANTS):
        return not record.removeprefix(CONSTANTS).startswith(TENSOR_CONSTANTS)
    return record.startswith(COMPILED)
