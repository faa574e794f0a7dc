"""The data that a worker hands to the process inside its model's own environment and back, as MessagePack in a file."""

from __future__ import annotations

from typing import Any

import msgspec

from workers.model_lookup import ModelVersion


class Handover(msgspec.Struct, frozen=True):
    """The results of the outer worker.

    Attributes:
        settings: All of its settings, by field name.
        folder: Folder for temporary files; removed at the end.
        is_trial: Whether to only load the model once; the result then replaces this content in the file.
    """

    settings: dict[str, Any]
    found: ModelVersion
    folder: str
    is_trial: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Why a trial failed; both empty if it succeeded."""

    code: str = ""
    detail: str = ""
