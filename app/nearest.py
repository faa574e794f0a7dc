"""Lists names for an error message, sorted by similarity to the wanted one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NAMED = 8  # names in a message


def nearest(wanted: str, names: Iterable[str]) -> str:
    """The names in one line, the most similar first."""

    def unlikeness(name: str) -> float:
        return -difflib.SequenceMatcher(None, wanted.casefold()[:256], name.casefold()).ratio()

    ordered = sorted(sorted(names), key=unlikeness)
    return ", ".join(ordered[:NAMED]) + (", …" if len(ordered) > NAMED else "")
