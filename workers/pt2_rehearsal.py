"""Loads a small pt2 program when it is imported: processes that are forked later share PyTorch's initialisation.

Each process of a `pt2` version would otherwise do it by itself: about 11 MiB, and part of the time of its load.
"""

from __future__ import annotations

import io

import torch
import torch.export


class _Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(samples))


def rehearse() -> None:
    """Export, load and run a program; starts no thread."""
    samples = torch.zeros(2, 2)
    free = {"samples": {0: torch.export.Dim.AUTO}}
    with io.BytesIO() as file:
        torch.export.save(torch.export.export(_Linear(), (samples,), dynamic_shapes=free, strict=False), file)
        file.seek(0)
        torch.export.load(file).module()(samples)


# More threads would not survive a fork; `model.load` sets the configured number.
torch.set_num_threads(1)
rehearse()
