"""The models that the servers of this folder serve, and how they read requests: `BENCH_WORKLOAD` names one.

A server decodes each request with `read` (a body) or `take` (its JSON document) and answers batches with `run`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import orjson


class Model(Protocol):
    """A model and its request format."""

    def read(self, body: bytes) -> Any:
        """The input of one request."""

    def take(self, document: Any) -> Any:
        """The same of a document that is already decoded from JSON."""

    def run(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to the requests of a batch."""


def load_model() -> Model:
    """Load the model of this workload and call it once."""
    return MODELS[os.environ["BENCH_WORKLOAD"]](os.environ["BENCH_MODEL"])


def _per_request(outputs: Any, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    answers, end = [], 0
    for each in inputs:
        start, end = end, end + len(each)
        answers.append({"predictions": outputs[start:end].tolist()})
    return answers


class Perceptron:
    """784, 128 and 10 units; answers a class."""

    def __init__(self, file: str) -> None:
        import torch
        from torch import nn

        torch.set_num_threads(1)
        # As a plain module a forward pass of one sample takes 40 µs, as the graph of torch.export 110 µs.
        self._network = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10), nn.Softmax(dim=1)
        ).eval()
        weights = torch.export.load(file).state_dict
        self._network.load_state_dict(
            {name.removeprefix("network."): weight for name, weight in weights.items()}
        )
        self._torch = torch
        for n_samples in (1, 2):
            self.run([np.zeros((n_samples, 1, 28, 28), np.float32)])

    def read(self, body: bytes) -> Any:
        """The input of a body."""
        return self.take(orjson.loads(body))

    def take(self, document: Any) -> Any:
        """The input of a document."""
        return np.array(document["data"], np.float32)

    def run(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to a batch."""
        samples = self._torch.from_numpy(np.concatenate(inputs) if len(inputs) > 1 else inputs[0])
        with self._torch.inference_mode():
            classes = self._network(samples).argmax(1).tolist()
        return [{"prediction": each} for each in classes]


class Tabular:
    """Gradient-boosted trees on rows of 30 columns. As an array: faster than as a DataFrame."""

    def __init__(self, file: str) -> None:
        import lightgbm

        self._booster = lightgbm.Booster(model_file=file)
        self.run([np.zeros((1, self._booster.num_feature()))])

    def read(self, body: bytes) -> Any:
        """The input of a body."""
        return self.take(orjson.loads(body))

    def take(self, document: Any) -> Any:
        """The input of a document."""
        return np.array(document["data"], np.float64)  # null becomes NaN

    def run(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to a batch."""
        rows = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
        return _per_request(self._booster.predict(rows, num_threads=1), inputs)


class Image:
    """A ResNet-18 on JPEG or raw pixels, uint8, shape (3, 224, 224)."""

    def __init__(self, file: str) -> None:
        import torch
        from resnet import ResNet18

        torch.set_num_threads(1)
        self._network = ResNet18().eval()
        self._network.load_state_dict(torch.load(file, weights_only=True))
        self._torch = torch
        self.run([np.zeros((1, 3, 224, 224), np.uint8)])

    def read(self, body: bytes) -> Any:
        """The input of a body."""
        from PIL import Image as Pictures

        if not body.startswith(b"\xff\xd8"):
            return np.frombuffer(bytearray(body), np.uint8).reshape(-1, 3, 224, 224)
        with Pictures.open(io.BytesIO(body)) as picture:
            return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))[None]

    def take(self, document: Any) -> Any:
        """The input of a document."""
        return self.read(base64.b64decode(document["data"][0]))

    def run(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to a batch."""
        images = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
        with self._torch.inference_mode():
            return _per_request(self._network(self._torch.from_numpy(images)).numpy(), inputs)


class Text:
    """Sentence embeddings, 384 numbers each."""

    def __init__(self, folder: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self._model = SentenceTransformer(folder, device="cpu")
        self.run([["warm-up"]])

    def read(self, body: bytes) -> Any:
        """The input of a body."""
        return self.take(orjson.loads(body))

    def take(self, document: Any) -> Any:
        """The input of a document."""
        return document["data"]

    def run(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to a batch."""
        sentences = [each for part in inputs for each in part]
        return _per_request(self._model.encode(sentences, show_progress_bar=False), inputs)


MODELS: dict[str, type[Model]] = {
    "perceptron": Perceptron,
    "tabular": Tabular,
    "image": Image,
    "text": Text,
}
