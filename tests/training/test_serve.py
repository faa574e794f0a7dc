"""MLflow's own server serves the versions as they are."""

import httpx
import numpy as np

from modelyard.digits import load_digits_28
from training.local_inference import load, scores

from .conftest import StartMlflow, Trained


def test_mlflow_models_serve_answers_the_same_scores(trained: Trained, start_mlflow: StartMlflow) -> None:
    line = ("models", "serve", "-m", "models:/Digits/1", "--env-manager", "local")
    url = start_mlflow(*line, health="/ping")
    images = load_digits_28()[0][:3]
    reply = httpx.post(f"{url}/invocations", json={"inputs": images.tolist()}, timeout=30)
    assert reply.status_code == 200, reply.text
    answer = np.array(reply.json()["predictions"])
    np.testing.assert_allclose(
        answer, scores(load("models:/Digits/1", trained.tracking_uri), images), atol=1e-5
    )
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
