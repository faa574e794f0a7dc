"""Dashboards and alert rules ask for series that a controller has; `test_prometheus` runs the queries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from tests.observability.dashboards import DASHBOARDS, FOLDER, panels, queries

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
ASKED = queries() + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
SERIES = re.compile(r"\b((?:modelyard|process)_\w+)(?:\{([^}]*)\})?")
OF_VERSION = ["worker", "model", "version", "alias"]
LABELS = {"job", "instance"}  # Prometheus adds them


def test_each_series_that_is_asked_for_is_one_of_a_controller_with_its_labels() -> None:
    # What a real controller has is compared with this file by `tests/goldens`.
    frozen = json.loads((ROOT / "tests" / "goldens" / "metrics.json").read_text())
    # Families without a sample, too.
    labels = dict.fromkeys(frozen["families"], OF_VERSION) | frozen["labels"]
    for query in ASKED:
        for name, selectors in SERIES.findall(query):
            assert name in labels, query
            assert set(re.findall(r"(\w+)[!=]", selectors)) <= {*labels[name], *LABELS}, query
        named = {
            label for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(", ")
        }
        known = {label for name, _ in SERIES.findall(query) for label in labels[name]} | LABELS
        assert "ALERTS" in query or named <= {*known, ""}, query


def test_each_dashboard_and_panel_is_whole() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text())
    [source] = sources["datasources"]
    assert sorted(DASHBOARDS) == ["pool.json", "version.json"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": source["uid"]}
    for dashboard in DASHBOARDS.values():
        taken = [
            (grid["x"] + x, grid["y"] + y)
            for grid in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(grid["w"])
            for y in range(grid["h"])
        ]
        assert len(taken) == len(set(taken)), "panels overlap"
        assert max(x for x, _ in taken) < 24


def test_grafana_finds_its_dashboards_and_prometheus_where_compose_has_them() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    provider = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "modelyard.yml").read_text())
    [provided] = provider["providers"]
    assert mounts["./deploy/grafana/dashboards"] == provided["options"]["path"]
    assert (
        f"default_home_dashboard_path = {provided['options']['path']}/pool.json"
        in (FOLDER / "grafana.ini").read_text()
    )
    sources = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    [rules] = yaml.safe_load((ROOT / "prometheus.yml").read_text())["rule_files"]
    [mount] = [each for each in services["prometheus"]["volumes"] if each.startswith("./deploy")]
    source, target, _ = mount.split(":")
    assert (Path("/etc/prometheus") / rules).parent == Path(target)
    assert (ROOT / rules).parent == ROOT / source
