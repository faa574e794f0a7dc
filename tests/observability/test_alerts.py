"""The alert rules: tested by promtool, and each with a runbook."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_each_alert_fires_where_its_cause_is_present_and_only_there(
    system_tool: Callable[[str, str], str],
) -> None:
    cases = Path(__file__).parent / "alerts_test.yml"
    command = [system_tool("promtool", "prometheus"), "test", "rules", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(rule["alert"] in cases.read_text() for rule in ALERTS)


def test_each_alert_has_its_section_among_the_runbooks_and_each_section_its_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
