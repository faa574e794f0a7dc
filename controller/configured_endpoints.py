"""The endpoints of `modelyard.toml`: read when the controller starts, and again when the file changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from app.file_stamp import EditWatch
from app.pool_file import (
    Endpoint,
    NamedVersion,
    PoolFile,
    default_endpoint,
    endpoint_of_model,
    find_pool_file,
    is_listed,
    read_pool_file,
)
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings
from controller.selector import Selector

logger = logging.getLogger(__name__)
LOOKS_APART_S = 0.2  # announcements of workers make looks follow each other at once


class ConfiguredEndpoints:
    """The endpoints of the file, by name; none without a file.

    Raises:
        ConfigurationError: The file has mistakes, or the settings name one that does not exist.
    """

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._path = find_pool_file(settings)
        self._edits = EditWatch(self._path, LOOKS_APART_S)
        self._file = self._read(self._path) if self._path else PoolFile(Path())
        self._observers: list[Callable[[], None]] = []

    def observe(self, changed: Callable[[], None]) -> None:
        """Have a function called after each edit."""
        self._observers.append(changed)

    def asked_for(self, selector: Selector) -> Endpoint | None:
        """The configured endpoint whose defaults apply to a request; None if there is none, or it names a worker."""
        if selector.endpoint is not None:
            return self._by_name.get(selector.endpoint)
        if selector.model is not None:
            model = selector.model
            name = endpoint_of_model(self._by_name, model) or endpoint_of_model(
                self._by_name, model.rpartition("@")[0]
            )
            return self._by_name[name] if name else None
        if selector.worker is not None:
            return None
        default = default_endpoint(self._by_name, self._by_name)
        return self._by_name[default] if default else None

    def deadline_s(self, selector: Selector) -> float:
        """The deadline of a request that states none."""
        endpoint = self.asked_for(selector)
        own = endpoint.deadline_s if endpoint else None
        return self._settings.default_deadline_s if own is None else own

    def wait_s(self, selector: Selector) -> float:
        """Seconds that a request waits if it states no wait."""
        endpoint = self.asked_for(selector)
        return (endpoint.wait_s if endpoint else None) or 0.0

    def read(self) -> Mapping[str, Endpoint]:
        """The endpoints; after an edit with mistakes those before it."""
        if self._path and self._edits.is_edited(self._path) and self._path.exists():
            try:
                self._file = self._read(self._path)
            except ConfigurationError as error:
                logger.error("the endpoints stay as they are: %s", error.detail)
            else:
                logger.info("the endpoints of %s are: %s", self._path, ", ".join(self._by_name) or "none")
                for changed in self._observers:
                    changed()
        return self._by_name

    def is_listed(self, version: NamedVersion) -> bool:
        """Whether an endpoint or a `[[serve]]` entry of the file names this very version."""
        return is_listed(self.read(), version) or any(
            entry.model == version.model and version.version in entry.versions for entry in self._file.serve
        )

    @property
    def _by_name(self) -> Mapping[str, Endpoint]:
        return self._file.endpoints

    def _read(self, path: Path) -> PoolFile:
        """Read the file, and compare its defaults with the limits of the settings."""
        file, settings = read_pool_file(path), self._settings
        mistakes = []
        for name, each in file.endpoints.items():
            for key, value, most in (
                ("deadline_s", each.deadline_s, settings.max_deadline_s),
                ("wait_s", each.wait_s, settings.max_wait_s),
            ):
                if value is not None and value > most:
                    place = file.place("endpoints", name, key)
                    mistakes.append(
                        f"{place}: `{key}` is {value:g}; expected at most {most:g}, the limit of the settings"
                    )
        if mistakes:
            raise ConfigurationError("\nmodelyard: ".join(mistakes))
        return file
