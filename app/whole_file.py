"""Writes files whose readers see the old or the new content, never a part of it."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, in place of the one that is there.

    Raises:
        OSError: It cannot be written.
    """
    write_beside(path, content).replace(path)


def write_beside(path: Path, content: bytes) -> Path:
    """Write the content into a new file in the folder of `path`; returns its path.

    Raises:
        OSError: It cannot be written.
    """
    written = path.with_name(f"{path.name}.{uuid4().hex}.new")
    written.write_bytes(content)
    return written
