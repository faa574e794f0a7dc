"""Draws the figures of a training run; `training.registry` stores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelyard.digits import CLASSES, Labels
from training.fit import EpochResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN_COLOUR = "#7a8699"
_VAL_COLOUR = "#0b6e99"
_ACCURACY_COLOUR = "#c4561b"
_GRID_COLOUR = "#e3e6ea"
_DPI = 150


def learning_curve(history: Sequence[EpochResult], title: str) -> Figure:
    """Losses and accuracy by epoch.

    Args:
        history: One result per epoch, at least one.
        title: Heading of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [result.epoch for result in history]
    figure = Figure(figsize=(9, 3.8), dpi=_DPI, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    _line(loss, epochs, [result.train_loss for result in history], "training", _TRAIN_COLOUR)
    _line(loss, epochs, [result.val_loss for result in history], "validation", _VAL_COLOUR)
    loss.set(title="Cross entropy (nats)", xlabel="epoch")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False)
    _line(accuracy, epochs, [result.val_accuracy for result in history], "validation", _ACCURACY_COLOUR)
    accuracy.set(title="Validation accuracy", xlabel="epoch")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1))
    accuracy.annotate(
        f"{history[-1].val_accuracy:.1%}",
        (epochs[-1], history[-1].val_accuracy),
        **{"xytext": (0, -16), "textcoords": "offset points", "ha": "center", "color": _ACCURACY_COLOUR},
    )
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
    return figure


def confusion_matrix(labels: Labels, predicted: Labels, title: str) -> Figure:
    """How often each digit was predicted for each true digit.

    Args:
        labels: True classes: int64, shape (n_samples,).
        predicted: Predicted classes: int64, shape (n_samples,).
        title: Heading of the figure.
    """
    from matplotlib.figure import Figure

    counts = confusion_counts(labels, predicted)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6.2, 6.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, guess in np.argwhere(counts):
        colour = ("white" if shares[true, guess] > 0.5 else "black") if true == guess else _ACCURACY_COLOUR
        weight = "normal" if true == guess else "bold"
        label = f"{counts[true, guess]:,}"
        axes.text(guess, true, label, ha="center", va="center", fontsize=9, color=colour, fontweight=weight)
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(CLASSES), yticks=range(CLASSES))
    axes.set_xticks(np.arange(-0.5, CLASSES), minor=True)
    axes.set_yticks(np.arange(-0.5, CLASSES), minor=True)
    axes.grid(which="minor", color=_GRID_COLOUR, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


def confusion_counts(labels: Labels, predicted: Labels) -> NDArray[np.int64]:
    """Samples by true class (row) and predicted class (column): int64, shape (10, 10)."""
    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _line(axes: Axes, epochs: list[int], values: list[float], label: str, colour: str) -> None:
    """One curve, with a marker per epoch if there are few epochs."""
    marker = "o" if len(epochs) <= 30 else None
    axes.plot(epochs, values, label=label, color=colour, marker=marker, markersize=4, linewidth=1.8)


def _plain(axes: Axes) -> None:
    """Remove decoration from the axes."""
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GRID_COLOUR)
    axes.set_axisbelow(True)
    axes.margins(y=0.15)
