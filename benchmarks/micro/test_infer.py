"""The forward pass, as a worker runs it and bare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import WorkerSettings
from benchmarks import digit_bodies, envs
from workers import model as models
from workers.warm_up import LoadedModel


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The benchmark's model version, loaded as a worker does; trained on first use."""
    made = digit_bodies.make_model(Path(envs.ENVIRONMENTS))
    settings = WorkerSettings(mlflow_tracking_uri=made.tracking_uri, model_version="1", device="cpu")
    return models.load(models.find(settings, str(tmp_path_factory.mktemp("model"))), settings)


@pytest.mark.parametrize("n_samples", [1, 32, 64, 256])
def test_infer(benchmark: Any, model: LoadedModel, n_samples: int) -> None:
    """One forward pass of a batch."""
    samples = np.random.default_rng(0).random((n_samples, 1, 28, 28), np.float32)
    assert benchmark(model.predict, samples).shape == (n_samples, 10)
