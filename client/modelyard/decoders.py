"""The decoders of the HTTP API's documents."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}
_building = threading.Lock()


def decoder(document: type[T]) -> msgspec.json.Decoder[T]:
    """The decoder of a document, built by one thread alone: msgspec crashed while several examined a type at once."""
    found = _decoders.get(document)
    if found is None:
        with _building:
            found = _decoders[document] = msgspec.json.Decoder(document)
    return found
