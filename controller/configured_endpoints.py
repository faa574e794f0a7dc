"""The endpoints of `modelyard.toml`: read when the controller starts, and again when the file changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from app.errors import ConfigurationError
from app.pool_file import Endpoint, find_pool_file, read_pool_file
from app.settings import ControllerSettings

logger = logging.getLogger(__name__)


class ConfiguredEndpoints:
    """The endpoints of the file, by name; none without a file.

    Raises:
        ConfigurationError: The file has mistakes, or the settings name one that does not exist.
    """

    def __init__(self, settings: ControllerSettings) -> None:
        self._path = find_pool_file(settings)
        self._state = _state(self._path)
        self._by_name = read_pool_file(self._path).endpoints if self._path else {}

    def read(self) -> Mapping[str, Endpoint]:
        """The endpoints; after an edit with mistakes those before it."""
        state = _state(self._path)
        if self._path and state and state != self._state:
            self._state = state
            try:
                self._by_name = read_pool_file(self._path).endpoints
            except ConfigurationError as error:
                logger.error("the endpoints stay as they are: %s", error.detail)
            else:
                logger.info("the endpoints of %s are: %s", self._path, ", ".join(self._by_name) or "none")
        return self._by_name


def _state(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with each edit; None while there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if found else None
