"""The source of a pool's entries: the command line, `modelyard.toml`, or the setting `MODEL_NAME`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.file_stamp import EditWatch
from app.pool_file import Endpoint, KeyPath, PoolFile, Serve, find_pool_file, read_pool_file
from app.server_errors import ConfigurationError
from app.settings import Settings
from app.whole_file import replace_file

ASKED = "asked.json"
MODEL_ARGUMENT = re.compile(r"(?:models:/)?([^/:@]+)(?:[:/@](?![0\s]+$)([^/:@]+))?")


class ServedEntries:
    """The entries of a pool; a file is read again when it has changed.

    Args:
        settings: Name the file and the model.
        given: Entries of the command line, which come before those of the file; they never change.

    Attributes:
        edited_at_ms: When the file was last edited, Unix time; 0 without a file.

    Raises:
        ConfigurationError: The file has mistakes.
    """

    def __init__(self, settings: Settings, given: Sequence[Serve] = ()) -> None:
        self._settings = settings
        self._given = tuple(given)
        self._file: PoolFile | None = None
        path = find_pool_file(settings)
        self._edits = EditWatch(path)
        self.edited_at_ms = 0.0
        if path:
            self._take(read_pool_file(path))

    @property
    def file(self) -> Path | None:
        """The file that the entries come from, if they come from one."""
        return self._file.path if self._file and not self._given else None

    @property
    def entries(self) -> tuple[Serve, ...] | None:
        """The entries; None if nothing says what to serve."""
        if self._given:
            return self._given
        if self._file and self._file.serve:
            return self._file.serve
        if "model_name" in self._settings.model_fields_set:
            return (Serve(model=self._settings.model_name),)
        return None

    def write_for_plan(self, replicas: int) -> None:
        """Write entries that come from no file, and the number of replicas, for `asked_of_pool`."""
        entries = [] if self.file else [_document(each) for each in self.entries or ()]
        document = {"entries": entries, "replicas": replicas}
        replace_file(self._settings.state_dir / ASKED, json.dumps(document).encode())

    def read(self) -> bool:
        """Read the file if it was edited; True if it was read.

        Raises:
            ConfigurationError: It has mistakes, serves nothing any more, or has gone. The entries stay as they were.
        """
        path = find_pool_file(self._settings)
        if not self._edits.is_edited(path):
            return False
        if path is None:
            raise ConfigurationError("modelyard.toml has gone")
        file = read_pool_file(path)
        if self._file and self._file.serve and not file.serve:
            raise ConfigurationError(f"{path} has no [[serve]] entry any more")
        self._take(file)
        return True

    def _take(self, file: PoolFile) -> None:
        self._file = file
        with suppress(OSError):  # it has just gone
            self.edited_at_ms = file.path.stat().st_mtime * 1000

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints of the file, by name."""
        return self._file.endpoints if self._file else {}

    def lines(self, problems: Iterable[tuple[KeyPath, str]]) -> list[str]:
        """Texts about keys, each behind its file and line if the key is in the file."""
        return [self._place(where) + text for where, text in problems]

    def _place(self, where: KeyPath) -> str:
        is_in_file = self.file or where[0] != "serve"
        return f"{self._file.place(*where)}: " if self._file and is_in_file else ""


def _document(entry: Serve) -> dict[str, Any]:
    return entry.model_dump(mode="json", exclude_unset=True)


def asked_of_pool(settings: Settings) -> tuple[list[Serve], int]:
    """The entries that the running pool got from no file, and its replicas; none and 1 if it has said nothing."""
    try:
        document = json.loads((settings.state_dir / ASKED).read_bytes())
        return [Serve.model_validate(each) for each in document["entries"]], int(document["replicas"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], 1


def entries_given(settings: Settings, arguments: Sequence[str], numbers: Sequence[int]) -> list[Serve]:
    """The entries of a command line; those of one model become one entry.

    Args:
        settings: Name the model of `numbers`.
        arguments: Models such as `NAME`, `NAME:3` and `NAME@champion`.
        numbers: Versions of that model.

    Raises:
        ConfigurationError: An argument is something else, or there are both.
    """
    if arguments and numbers:
        raise ConfigurationError(
            "--versions are of MODEL_NAME; with --model, write --model NAME:3 for each version"
        )
    if numbers:
        return [Serve(model=settings.model_name, versions=tuple(numbers))]
    versions: dict[str, list[int | str]] = {}
    for argument in arguments:
        match = MODEL_ARGUMENT.fullmatch(argument)
        if match is None:
            raise ConfigurationError(
                f"--model {argument!r} is not a model; expected NAME, NAME:3, NAME@champion or NAME:latest"
            )
        name, word = match.groups()
        versions.setdefault(name, []).extend([word] if word else [])
    return [
        Serve.model_validate({"model": name, "versions": words} if words else {"model": name})
        for name, words in versions.items()
    ]
