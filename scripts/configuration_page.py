"""Writes `docs/configuration.md` from `app.settings`: `python scripts/configuration_page.py`."""

from __future__ import annotations

from pathlib import Path

from app.settings import ControllerSettings, PoolSettings, Settings, WorkerSettings, variable_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
KINDS: tuple[tuple[str, type[Settings]], ...] = (
    ("Every process", Settings),
    ("Workers", WorkerSettings),
    ("Controllers", ControllerSettings),
    ("`modelyard up`", PoolSettings),
)
HEAD = """\
# Configuration

Modelyard is configured by environment variables; each process reads its own. Units are in the names: `_S` seconds,
`_MS` milliseconds, `_BYTES` bytes. An invalid value stops the process at its start, with the variable, its value and
the allowed values. A warning names unknown `MODELYARD_*` variables. `python scripts/configuration_page.py` generates
this page from the code.
"""
TAIL = """
## Other commands

`MODELYARD_URL` is the controller's URL for client commands; without it they use `MODELYARD_HOST` and
`MODELYARD_PORT`. `MODELYARD_API_KEY` is the key that they send.

`modelyard up` and `modelyard demo` also read `FLOWER_ADDRESS` and `MLFLOW_HOST` (`127.0.0.1`), `FLOWER_PORT` (5555)
and `MLFLOW_PORT` (5000). `FLOWER_BASIC_AUTH`, or the file in `FLOWER_BASIC_AUTH_FILE`, is Flower's login.

The compose file reads its own variables from `.env`; [`.env.example`](../.env.example) lists them. Passwords are files
in `.secrets`: see [deployment](deployment.md#containers).
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, kind in KINDS:
        lines += [f"## {title}\n", "| variable | default | meaning |", "| --- | --- | --- |"]
        for name, field in kind.model_fields.items():
            if any(name in base.model_fields for base in kind.__mro__[1:] if issubclass(base, Settings)):
                continue  # listed before
            default = f"`{field.default}`" if field.default not in (None, "") else "none"
            lines.append(f"| `{variable_name(kind, name)}` | {default} | {field.description} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
