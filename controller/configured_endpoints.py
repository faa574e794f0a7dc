"""The endpoints of `modelyard.toml`: read when the controller starts, and again when the file changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from app.errors import ConfigurationError
from app.file_stamp import EditWatch
from app.pool_file import Endpoint, find_pool_file, read_pool_file
from app.settings import ControllerSettings

logger = logging.getLogger(__name__)
LOOKS_APART_S = 0.2  # announcements of workers make looks follow each other at once


class ConfiguredEndpoints:
    """The endpoints of the file, by name; none without a file.

    Raises:
        ConfigurationError: The file has mistakes, or the settings name one that does not exist.
    """

    def __init__(self, settings: ControllerSettings) -> None:
        self._path = find_pool_file(settings)
        self._edits = EditWatch(self._path, LOOKS_APART_S)
        self._by_name = read_pool_file(self._path).endpoints if self._path else {}

    def read(self) -> Mapping[str, Endpoint]:
        """The endpoints; after an edit with mistakes those before it."""
        if self._path and self._edits.is_edited(self._path) and self._path.exists():
            try:
                self._by_name = read_pool_file(self._path).endpoints
            except ConfigurationError as error:
                logger.error("the endpoints stay as they are: %s", error.detail)
            else:
                logger.info("the endpoints of %s are: %s", self._path, ", ".join(self._by_name) or "none")
        return self._by_name
