"""MNIST from its IDX files: found in a folder or downloaded, and in both cases checked against a checksum.

The format is described with the data at https://yann.lecun.org/exdb/mnist/: a magic number of two zero bytes,
the dtype (8 is unsigned byte) and the number of dimensions, then each dimension as a big-endian 32-bit
integer, then the values.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from app.server_errors import DatasetError
from modelyard.digits import CLASSES, SIDE_PIXELS, Images, Labels

# Only the 60,000 training samples: the 10,000 test samples stay unseen, to compare with published results.
IMAGES_FILE = "train-images-idx3-ubyte"
LABELS_FILE = "train-labels-idx1-ubyte"
# SHA-256 of the files' content without compression, so that a recompressed copy is good too.
CHECKSUMS = {
    IMAGES_FILE: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    LABELS_FILE: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}
CHECKSUMS_FILE = "SHA256SUMS"
BASE_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CACHE_DIR = Path("~/.cache/modelyard/mnist")

OnDownload = Callable[[str, int, int], None]  # file, bytes so far, bytes in all (0: unknown)

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
_UNSIGNED_BYTE = 8


def load_mnist(
    data_dir: Path | None,
    on_download: OnDownload,
    *,
    base_url: str = BASE_URL,
    cache_dir: Path = CACHE_DIR,
) -> tuple[Images, Labels]:
    """Load MNIST's training samples.

    A folder with other IDX files is read too, if it holds a ``SHA256SUMS`` file (as ``sha256sum`` writes
    it, over the uncompressed files): that one then replaces MNIST's own checksums.

    Args:
        data_dir: Folder that holds the files, plain or as ``.gz``; None downloads them to `cache_dir` once.
        on_download: Called with the download's progress.
        base_url: Where the ``.gz`` files are downloaded from; ends in a slash.
        cache_dir: Where downloaded files are kept.

    Returns:
        Images: float32, shape (n_samples, 1, 28, 28), in [0, 1]; labels: int64, shape (n_samples,).

    Raises:
        DatasetError: A file is missing, truncated, corrupt, or not the one that the checksum names; or the
            download failed.
    """
    folder = (data_dir or cache_dir).expanduser()
    checksums = _checksums(folder)
    if data_dir is None:
        for name in (IMAGES_FILE, LABELS_FILE):
            _download(base_url, folder, name, checksums[name], on_download)
    pixels = parse_idx(*_read(folder, IMAGES_FILE, checksums), n_dimensions=3)
    labels = parse_idx(*_read(folder, LABELS_FILE, checksums), n_dimensions=1)
    _check_pair(pixels, labels)
    images = pixels[:, np.newaxis].astype(np.float32) / np.float32(255)
    return images, labels.astype(np.int64)


def parse_idx(content: bytes, source: str, *, n_dimensions: int) -> NDArray[np.uint8]:
    """Parse an uncompressed IDX file of unsigned bytes.

    Args:
        content: The whole file.
        source: Its name in an error.
        n_dimensions: How many dimensions it must have.

    Raises:
        DatasetError: The magic number is another, or the length is not what the dimensions say.
    """
    magic = bytes([0, 0, _UNSIGNED_BYTE, n_dimensions])
    if content[:4] != magic:
        raise DatasetError(
            f"{source} starts with {content[:4].hex() or 'nothing'}, not with {magic.hex()}, the magic "
            f"number of an IDX file of unsigned bytes in {n_dimensions} dimension(s); give MNIST's own file"
        )
    header_bytes = 4 + 4 * n_dimensions
    if len(content) < header_bytes:
        raise DatasetError(f"{source} ends within its header of {header_bytes} bytes; get the file again")
    shape = struct.unpack(f">{n_dimensions}I", content[4:header_bytes])
    expected_bytes = header_bytes + int(np.prod(shape, dtype=object))
    if len(content) != expected_bytes:
        raise DatasetError(
            f"{source} has {len(content)} bytes, but its header {shape} makes {expected_bytes}: "
            "it is truncated or damaged; get the file again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _check_pair(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Check that two intact files belong together and hold digits."""
    if pixels.shape[1:] != (SIDE_PIXELS, SIDE_PIXELS):
        raise DatasetError(f"images are {pixels.shape[1:]} pixels; expected {SIDE_PIXELS}x{SIDE_PIXELS}")
    if len(pixels) != len(labels):
        raise DatasetError(
            f"{IMAGES_FILE} has {len(pixels)} images, {LABELS_FILE} {len(labels)} labels; "
            "use files of one set"
        )
    if len(labels) and labels.max() >= CLASSES:
        raise DatasetError(f"{LABELS_FILE} holds the label {labels.max()}; expected 0 to {CLASSES - 1}")


def _checksums(folder: Path) -> Mapping[str, str]:
    """The checksums that a folder's files must have."""
    try:
        lines = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return CHECKSUMS
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {folder / CHECKSUMS_FILE}: {error}") from None
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    given = {pair[1].lstrip("*").strip(): pair[0].lower() for pair in pairs if len(pair) == 2}
    missing = [name for name in CHECKSUMS if name not in given]
    if missing:
        raise DatasetError(f"{folder / CHECKSUMS_FILE} lacks a line for {' and '.join(missing)}")
    return given


def _read(folder: Path, name: str, checksums: Mapping[str, str]) -> tuple[bytes, str]:
    """A file's uncompressed, verified content, and its path for errors."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            content = _content(path)
            _verify(content, str(path), checksums[name])
            return content, str(path)
    raise DatasetError(
        f"neither {name} nor {name}.gz is in {folder}; put MNIST's files there, "
        "or leave the folder out to have them downloaded"
    )


def _content(path: Path) -> bytes:
    """Uncompressed bytes of a file."""
    try:
        return _decompressed(path.read_bytes(), str(path)) if path.suffix == ".gz" else path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def _decompressed(packed: bytes, source: str) -> bytes:
    """Uncompressed bytes of a gzip file's content."""
    try:
        return gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{source} is truncated or damaged ({error}); get the file again") from None


def _verify(content: bytes, source: str, expected: str) -> None:
    """Refuse content that has another checksum."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DatasetError(
            f"{source} is not the file it claims to be: its content has the SHA-256 {found}, expected "
            f"{expected}; get it again, or, if it is meant to be another data set, name its checksum in "
            f"a {CHECKSUMS_FILE} file beside it"
        )


def _download(base_url: str, folder: Path, name: str, checksum: str, on_download: OnDownload) -> None:
    """Download a file unless it exists; it gets its name only when it is complete and verified."""
    target, url = folder / f"{name}.gz", f"{base_url}{name}.gz"
    if target.is_file() or (folder / name).is_file():
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            _fetch(url, file, name, on_download)
        _verify(_decompressed(part.read_bytes(), url), url, checksum)
        part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DatasetError(
            f"cannot download {url} to {folder}: {reason}; try again, or give a folder that holds the files"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _fetch(url: str, file: IO[bytes], name: str, on_download: OnDownload) -> None:
    """Stream a URL into a file."""
    done_bytes = 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - the caller's own URL
        total_bytes = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            done_bytes += len(chunk)
            on_download(name, done_bytes, total_bytes)
    if done_bytes < total_bytes:
        raise DatasetError(
            f"the download of {url} ended after {done_bytes} of {total_bytes} bytes; try again"
        )
