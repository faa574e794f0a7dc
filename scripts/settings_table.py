"""Writes the README's table of settings from `app.settings`: `python scripts/settings_table.py`."""

from __future__ import annotations

from app.settings import ControllerSettings, Settings, WorkerSettings, variable_name

KINDS: tuple[tuple[str, type[Settings]], ...] = (
    ("every process", Settings),
    ("worker", WorkerSettings),
    ("controller", ControllerSettings),
)


def rows() -> list[str]:
    """One row a setting: variable, reader, default, meaning."""
    lines = ["| variable | read by | default | meaning |", "| --- | --- | --- | --- |"]
    for reader, kind in KINDS:
        for name, field in kind.model_fields.items():
            if kind is not Settings and name in Settings.model_fields:
                continue
            default = f"`{field.default}`" if field.default not in (None, "") else "none"
            lines.append(f"| `{variable_name(kind, name)}` | {reader} | {default} | {field.description} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
