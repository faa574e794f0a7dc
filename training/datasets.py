"""Labelled images by name, with a digest that identifies the data of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.server_errors import DatasetError
from modelyard.digits import Images, Indices, Labels, heldout_indices, load_digits_28
from training.mnist import BASE_URL, OnDownload, load_mnist
from training.options import DATASETS

_DIGITS_URL = "https://archive.ics.uci.edu/dataset/80"  # scikit-learn's digits are its test half
_DIGEST_CHARACTERS = 32  # MLflow keeps at most 36


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images.

    Attributes:
        name: One of `DATASETS`.
        images: float32, shape (n_samples, 1, 28, 28), in [0, 1], light on dark.
        labels: int64, shape (n_samples,), 0 to 9.
        digest: The first 32 hexadecimal digits of a SHA-256 over both arrays.
        source: Origin: a URL or a folder.
    """

    name: str
    images: Images
    labels: Labels
    digest: str
    source: str


@dataclass(frozen=True, eq=False)
class Split:
    """The training and the validation samples: int64 positions, sorted, disjoint."""

    train: Indices
    val: Indices


def load_dataset(name: str, data_dir: Path | None, on_download: OnDownload) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`.
        data_dir: Folder with MNIST's IDX files; None downloads them. `digits` needs none.
        on_download: Told of a download's progress.

    Raises:
        DatasetError: A file is missing, corrupt or not what it claims to be.
    """
    if name == "digits":
        images, labels = load_digits_28()
        source = _DIGITS_URL
    elif name == "mnist":
        images, labels = load_mnist(data_dir, on_download)
        source = str(data_dir.expanduser().resolve()) if data_dir else BASE_URL
    else:
        raise DatasetError(f"there is no data set {name!r}; expected one of {', '.join(DATASETS)}")
    return Dataset(name, images, labels, digest_of(images, labels), source)


def digest_of(images: Images, labels: Labels) -> str:
    """Digest of the arrays' shapes, dtypes and values: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:_DIGEST_CHARACTERS]


def stratified_split(dataset: Dataset, val_fraction: float, seed: int) -> Split:
    """Split a data set so that every class has the same fraction in validation.

    Raises:
        DatasetError: A class has too few samples for this split.
    """
    val = heldout_indices(dataset.labels, val_fraction, seed)
    return Split(train=np.setdiff1d(np.arange(len(dataset.labels)), val, assume_unique=True), val=val)
