"""The digits, their digest and their split."""

from pathlib import Path

import numpy as np
import pytest

from app.server_errors import DatasetError
from modelyard.digits import heldout_indices, load_digits_28
from training.datasets import digest_of, load_dataset, stratified_split

from .conftest import IdxFiles, Ignore


def test_digits_are_scikit_learns_enlarged_and_centred() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits_28()
    scans = load_digits()
    np.testing.assert_array_equal(labels, scans.target)
    assert images.dtype == np.float32
    assert images.shape == (1797, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    assert not images[:, :, :4].any()
    assert not images[..., -4:].any()
    ink = images.sum(axis=(1, 2, 3)) / scans.images.sum(axis=(1, 2))
    np.testing.assert_allclose(ink, (20 / 8) ** 2 / 16, rtol=0.1)


def test_split_is_stratified_disjoint_and_complete(ignore: Ignore) -> None:
    dataset = load_dataset("digits", None, ignore)
    split = stratified_split(dataset, 0.2, seed=3)
    assert sorted([*split.train, *split.val]) == list(range(1797))
    shares = np.bincount(dataset.labels[split.val]) / np.bincount(dataset.labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.01)


def test_split_depends_on_the_seed_alone() -> None:
    labels = np.arange(200, dtype=np.int64) % 10
    np.testing.assert_array_equal(heldout_indices(labels, 0.3, 1), heldout_indices(labels, 0.3, 1))
    assert heldout_indices(labels, 0.3, 1).tolist() != heldout_indices(labels, 0.3, 2).tolist()


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], []])
def test_a_class_too_small_to_split_is_refused(labels: list[int]) -> None:
    with pytest.raises(DatasetError):
        heldout_indices(np.array(labels, dtype=np.int64), 0.5)


def test_digest_changes_with_any_pixel_label_or_order() -> None:
    images, labels = load_digits_28()
    images, labels = images[:50], labels[:50]
    pixel, label = images.copy(), labels.copy()
    pixel[3, 0, 10, 10] += 0.5
    label[3] = (label[3] + 1) % 10
    variants = [(images, labels), (pixel, labels), (images, label), (images[::-1], labels[::-1])]
    assert len({digest_of(*variant) for variant in variants}) == 4
    assert digest_of(images, labels) == digest_of(images.copy(), labels.copy())


def test_mnist_loads_by_name(idx_files: IdxFiles, tmp_path: Path, ignore: Ignore) -> None:
    idx_files.write(tmp_path)
    dataset = load_dataset("mnist", tmp_path, ignore)
    assert (dataset.name, len(dataset.labels), dataset.source) == ("mnist", 60, str(tmp_path))


def test_an_unknown_name_lists_the_known_ones(ignore: Ignore) -> None:
    with pytest.raises(DatasetError, match="expected one of digits, mnist"):
        load_dataset("letters", None, ignore)
