"""Which model files load without unpickling: `torch.export` archives (`pt2`) that bring no Python code of their own.

Everything else (pickled PyTorch and scikit-learn models, and whatever `mlflow.pyfunc` loads) runs code that the
model's author chose, as soon as it is loaded. What MLflow then checks inside an archive is MLflow's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import ModelNotAllowedError

PT2_FILE = "model.pt2"
PICKLED_FILE = "model.pth"  # what MLflow takes first where a folder has both
TORCH_LOADER = "mlflow.pytorch"


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
    data = folder / str(torch.get("model_data", ""))
    if (data / PICKLED_FILE).exists() or not (data / PT2_FILE).is_file():
        return "is pickled, not a pt2 file"
    return ""
