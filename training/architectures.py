"""The networks that can be trained, and the form in which they are served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from modelyard.digits import CLASSES, SIDE_PIXELS


def mlp() -> nn.Module:
    """A perceptron of 784, 128 and 10 units: 101,770 weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE_PIXELS * SIDE_PIXELS, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    )


def cnn() -> nn.Module:
    """Two convolutions, each normalised and halved by pooling, and one linear layer: 11,322 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(16 * (SIDE_PIXELS // 4) ** 2, CLASSES)),
    )


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}


class Classifier(nn.Module):
    """A network as it is served: it answers class probabilities.

    Training works on the logits, because cross entropy is exact there. What is registered ends in a softmax,
    so that every server of the version, Modelyard's worker or MLflow's own, answers scores that sum to 1.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: float32, shape (n_samples, 1, 28, 28), in [0, 1].

        Returns:
            Probabilities: float32, shape (n_samples, 10); each row sums to 1.
        """
        return torch.softmax(self.network(images), dim=1)
