"""Writes the README's table of settings from `app.settings`: `python scripts/settings_table.py`."""

from __future__ import annotations

from app.settings import KINDS, variable_name


def rows() -> list[str]:
    """One row a setting: variable, reader, default, meaning."""
    lines = ["| variable | read by | default | meaning |", "| --- | --- | --- | --- |"]
    seen: set[str] = set()
    for reader, kind in KINDS:
        for name, field in kind.model_fields.items():
            if name in seen:
                continue
            seen.add(name)
            default = f"`{field.default}`" if field.default not in (None, "") else "none"
            lines.append(f"| `{variable_name(kind, name)}` | {reader} | {default} | {field.description} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
