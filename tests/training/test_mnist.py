"""MNIST's files are read right, or not at all."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from app.server_errors import DatasetError
from training.mnist import CHECKSUMS_FILE, IMAGES_FILE, LABELS_FILE, load_mnist, parse_idx

from .conftest import FileServer, IdxFiles, Ignore, idx_bytes


@pytest.mark.parametrize("packed", [False, True])
def test_files_in_a_folder_are_read_plain_or_packed(
    idx_files: IdxFiles, tmp_path: Path, ignore: Ignore, packed: bool
) -> None:
    idx_files.write(tmp_path, packed=packed)
    images, labels = load_mnist(tmp_path, ignore)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert images.shape == (60, 1, 28, 28)
    np.testing.assert_array_equal(np.rint(images[:, 0] * 255), idx_files.pixels)
    np.testing.assert_array_equal(labels, idx_files.labels)


def test_a_folder_without_the_files_is_named(tmp_path: Path, ignore: Ignore) -> None:
    with pytest.raises(DatasetError, match=f"neither {IMAGES_FILE} nor .* is in {tmp_path}"):
        load_mnist(tmp_path, ignore)


def test_files_that_are_not_mnist_are_refused_without_checksums_of_their_own(
    idx_files: IdxFiles, tmp_path: Path, ignore: Ignore
) -> None:
    idx_files.write(tmp_path)
    (tmp_path / CHECKSUMS_FILE).unlink()
    with pytest.raises(DatasetError, match="is not the file it claims to be"):
        load_mnist(tmp_path, ignore)


@pytest.mark.parametrize("name", [IMAGES_FILE, LABELS_FILE])
def test_one_changed_byte_is_noticed(idx_files: IdxFiles, tmp_path: Path, ignore: Ignore, name: str) -> None:
    idx_files.write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name} is not the file it claims to be"):
        load_mnist(tmp_path, ignore)


def test_a_truncated_packed_file_is_noticed(idx_files: IdxFiles, tmp_path: Path, ignore: Ignore) -> None:
    idx_files.write(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES_FILE}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="truncated or damaged"):
        load_mnist(tmp_path, ignore)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:10], lambda b: b[:2], lambda b: b""],
    ids=["a byte short", "a byte long", "no header", "no magic number", "empty"],
)
def test_a_file_of_the_wrong_length_is_no_idx_file(damage: object) -> None:
    content = damage(idx_bytes(np.zeros((3, 28, 28), np.uint8)))  # type: ignore[operator]
    with pytest.raises(DatasetError):
        parse_idx(content, "the file", n_dimensions=3)


def test_labels_in_the_place_of_images_are_refused_by_their_magic_number() -> None:
    with pytest.raises(DatasetError, match="starts with 00000801, not with 00000803"):
        parse_idx(idx_bytes(np.zeros(3, np.uint8)), "the file", n_dimensions=3)


def test_a_header_that_promises_too_much_allocates_nothing() -> None:
    content = bytes([0, 0, 8, 3]) + b"\xff" * 12
    with pytest.raises(DatasetError, match="truncated or damaged"):
        parse_idx(content, "the file", n_dimensions=3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: IdxFiles(f.pixels[:-1], f.labels), "59 images"),
        (lambda f: IdxFiles(f.pixels[:, :27], f.labels), "expected 28x28"),
        (lambda f: IdxFiles(f.pixels, f.labels + 1), "label 10"),
    ],
    ids=["one image short", "other size", "label too high"],
)
def test_intact_files_that_do_not_belong_together_are_refused(
    idx_files: IdxFiles, tmp_path: Path, ignore: Ignore, change: object, complaint: str
) -> None:
    change(idx_files).write(tmp_path)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=complaint):
        load_mnist(tmp_path, ignore)


def test_a_checksum_file_that_lacks_a_name_is_refused(
    idx_files: IdxFiles, tmp_path: Path, ignore: Ignore
) -> None:
    idx_files.write(tmp_path)
    (tmp_path / CHECKSUMS_FILE).write_text(f"00  {IMAGES_FILE}\n")
    with pytest.raises(DatasetError, match=f"lacks a line for {LABELS_FILE}"):
        load_mnist(tmp_path, ignore)


@pytest.fixture
def served(file_server: FileServer, idx_files: IdxFiles, tmp_path: Path) -> FileServer:
    """A server with both files packed, and a cache folder that knows their checksums."""
    file_server.files = {f"{n}.gz": gzip.compress(content) for n, content in idx_files.contents().items()}
    idx_files.write_checksums(tmp_path)
    return file_server


def test_a_download_is_verified_kept_and_not_repeated(
    served: FileServer, idx_files: IdxFiles, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    for _ in range(2):
        images, _ = load_mnist(None, lambda *step: seen.append(step), base_url=served.url, cache_dir=tmp_path)
    assert len(images) == 60
    assert served.asked_for == [f"/{IMAGES_FILE}.gz", f"/{LABELS_FILE}.gz"]
    assert seen[-1] == (
        LABELS_FILE,
        len(served.files[f"{LABELS_FILE}.gz"]),
        len(served.files[f"{LABELS_FILE}.gz"]),
    )
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("fault", ["half", "changed", "not packed", "missing"])
def test_a_failed_download_leaves_nothing_and_the_next_one_works(
    served: FileServer, tmp_path: Path, ignore: Ignore, fault: str
) -> None:
    name, good = f"{IMAGES_FILE}.gz", served.files[f"{IMAGES_FILE}.gz"]
    if fault == "half":
        served.cut_bytes = 10
    bad = {
        "changed": gzip.compress(b"something else"),
        "not packed": b"<html>",
        "missing": None,
        "half": good,
    }
    served.files = {**served.files, name: bad[fault]}  # type: ignore[dict-item]
    with pytest.raises(DatasetError, match=served.url):
        load_mnist(None, ignore, base_url=served.url, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKSUMS_FILE]
    served.files[name], served.cut_bytes = good, 0
    assert len(load_mnist(None, ignore, base_url=served.url, cache_dir=tmp_path)[0]) == 60


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path: Path, ignore: Ignore) -> None:
    with pytest.raises(DatasetError, match=r"cannot download http://127\.0\.0\.1:1/.*refused; try again"):
        load_mnist(None, ignore, base_url="http://127.0.0.1:1/", cache_dir=tmp_path / "new")
