"""The Grafana dashboards, and the queries of their panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}


def panels() -> list[dict[str, Any]]:
    """All panels of all dashboards."""
    return [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]


def queries(**variables: str) -> list[str]:
    """The query of every panel, with values in the place of Grafana's variables."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            query: str = target["expr"].replace("$__rate_interval", "1m")
            for name, value in variables.items():
                query = query.replace(f"${name}", value)
            found.append(query)
    return found
