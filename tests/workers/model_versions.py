"""Versions to load: of the registry by their settings, and of an exported program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.settings import WorkerSettings
from workers.model_lookup import ModelVersion


def settings(registry: str, version: str, **fields: Any) -> WorkerSettings:
    defaults: dict[str, Any] = {
        "model_name": "Scikit",
        "mlflow_tracking_uri": registry,
        "redis_url": "redis://x",
        "allow_pickle_models": True,  # the registry's scikit-learn models are pickled
    }
    return WorkerSettings(model_version=version, **{**defaults, **fields})


def pt2(folder: Path, shape: tuple[int, ...], names: tuple[str | None, ...] = (None,)) -> ModelVersion:
    """A version whose exported program lies in a folder, with tensors of these names."""
    import torch

    flavors = {"pytorch": {"model_data": ".", "pytorch_version": torch.__version__}}
    tensor = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": list(shape)}}
    return ModelVersion(
        "Exported", 1, "", str(folder), flavors, {"inputs": [{**tensor, "name": n} for n in names]}
    )
