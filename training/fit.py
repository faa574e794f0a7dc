"""Fits a network to a split and evaluates it. Does not depend on MLflow.

Runs on one CPU thread: these networks train in seconds there, the same seed gives the same weights whatever
number of cores a machine has, and a busy machine does not stall it (torch's threads wait for each other at
every one of many small steps; on two loaded cores that took up to 28 times as long).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modelyard.digits import Labels
from training.architectures import ARCHITECTURES
from training.datasets import Dataset, Split
from training.options import TrainOptions

OnStep = Callable[[int, int], None]  # steps done, steps in all

_EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class EpochResult:
    """One pass over the training samples; losses are mean cross entropy in nats."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A measurement: mean loss in nats, accuracy in [0, 1], predicted classes int64, shape (n_samples,)."""

    loss: float
    accuracy: float
    predicted: Labels


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted network (it returns logits), its history, and the last evaluation on the validation split."""

    network: nn.Module
    history: tuple[EpochResult, ...]
    evaluation: Evaluation


def fit(
    arch: str,
    dataset: Dataset,
    split: Split,
    options: TrainOptions,
    *,
    on_step: OnStep,
    on_epoch: Callable[[EpochResult], None],
) -> Fitted:
    """Train an architecture; the process's random state is not changed.

    Args:
        arch: A name of `ARCHITECTURES`.
        dataset: The data set.
        split: Its training and validation samples.
        options: Hyperparameters.
        on_step: Called after every step.
        on_epoch: Called after every epoch.
    """
    train, val = _tensors(dataset, split.train), _tensors(dataset, split.val)
    steps = -(-len(split.train) // options.batch_size)
    history: list[EpochResult] = []
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(options.seed)
        network = ARCHITECTURES[arch]()
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        for epoch in range(1, options.epochs + 1):
            train_loss = 0.0
            for step, part_of_loss in enumerate(_fit_epoch(network, optimizer, train, options.batch_size), 1):
                train_loss += part_of_loss
                on_step((epoch - 1) * steps + step, options.epochs * steps)
            evaluation = evaluate(network, *val)
            history.append(EpochResult(epoch, train_loss, evaluation.loss, evaluation.accuracy))
            on_epoch(history[-1])
    return Fitted(network.eval(), tuple(history), evaluation)


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate a network that returns logits.

    Args:
        network: The network.
        images: float32, shape (n_samples, 1, 28, 28).
        labels: int64, shape (n_samples,).
    """
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in torch.split(images, _EVALUATION_BATCH)])
        predicted = logits.argmax(dim=1)
        return Evaluation(
            loss=float(nn.functional.cross_entropy(logits, labels)),
            accuracy=float((predicted == labels).sum()) / len(labels),
            predicted=np.asarray(predicted.numpy()),
        )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, train: tuple[Tensor, Tensor], batch_size: int
) -> Iterator[float]:
    """Run one pass in random order; yields each step's contribution to the mean loss."""
    images, labels = train
    network.train()
    for chosen in torch.split(torch.randperm(len(labels)), batch_size):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item() * len(chosen) / len(labels)


def _tensors(dataset: Dataset, indices: Labels) -> tuple[Tensor, Tensor]:
    """The chosen samples as tensors."""
    return torch.from_numpy(dataset.images[indices]), torch.from_numpy(dataset.labels[indices])
