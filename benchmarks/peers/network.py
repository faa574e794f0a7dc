"""The network that every server of this folder serves, as the comparison's harness hands it over."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def load_network() -> Callable[[Any], list[int]]:
    """Load the network; what is returned takes float32, shape (n, 1, 28, 28), and answers n classes."""
    torch.set_num_threads(1)
    network = _plain(torch.export.load(os.environ["BENCH_MODEL"]).state_dict)

    def classify(samples: Any) -> list[int]:
        with torch.inference_mode():
            return network(torch.from_numpy(samples)).argmax(1).tolist()

    for n_samples in (1, 2):
        classify(np.zeros((n_samples, 1, 28, 28), np.float32))
    return classify


def _plain(weights: dict[str, torch.Tensor]) -> nn.Module:
    # As a plain module a forward pass of one sample takes 40 µs, as the graph of torch.export 110 µs.
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10), nn.Softmax(dim=1)
    )
    network.load_state_dict({name.removeprefix("network."): weight for name, weight in weights.items()})
    return network.eval()
