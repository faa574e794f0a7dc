"""Networks for training, and the module that serves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from modelyard.digits import CLASSES, SIDE_PIXELS


def mlp() -> nn.Module:
    """A multilayer perceptron with 784, 128 and 10 units: 101,770 weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE_PIXELS * SIDE_PIXELS, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    )


def cnn() -> nn.Module:
    """Two convolutions, each with batch normalisation and 2 by 2 pooling, and a linear layer: 11,322 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(16 * (SIDE_PIXELS // 4) ** 2, CLASSES)),
    )


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}


class Classifier(nn.Module):
    """A trained network with a softmax, which returns class probabilities.

    Training uses the logits, because cross entropy is numerically exact on them. The registered model includes the
    softmax, so that every server returns scores that sum to 1: Modelyard's worker and MLflow's own.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute class probabilities.

        Args:
            images: float32, shape (n_samples, 1, 28, 28), in [0, 1].

        Returns:
            Probabilities: float32, shape (n_samples, 10); each row sums to 1.
        """
        return torch.softmax(self.network(images), dim=1)
