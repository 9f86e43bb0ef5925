"""The Grafana dashboard is what its code makes, and asks for what the program exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.metrics import PER_TRIAL, TRIAL_TAGS, TRIALS, TRIALS_TAGS

pytest.importorskip("grafana_foundation_sdk", reason="needs grafana-foundation-sdk (pip install -e '.[dev]')")

from monitoring.dashboard import SOURCE, UNITS, render

MONITORING = Path(__file__).parents[2] / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "finetune-comparison.json"
LABELS = {f"ray_{TRIALS}": TRIALS_TAGS} | {f"ray_{name}": TRIAL_TAGS for name in PER_TRIAL}


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_it_is_fresh() -> None:
    assert DASHBOARD.read_text() == render(), f"stale: python -m monitoring.dashboard > {DASHBOARD}"


def test_every_metric_has_a_unit_and_a_panel() -> None:
    assert set(UNITS) == set(PER_TRIAL)
    asked = " ".join(expressions())
    assert all(re.search(rf"\b{name}\b", asked) for name in LABELS)


@pytest.mark.parametrize("expression", expressions())
def test_it_asks_for_metrics_and_labels_that_are_exported(expression: str) -> None:
    names = re.findall(r"\bray_\w+", expression)
    assert names
    for name in names:
        labels = set(re.findall(r"(\w+)=~?\"", expression))
        labels |= {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
        assert labels <= set(LABELS[name])


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_its_data_source_is_the_provisioned_one() -> None:
    provisioned = yaml.safe_load(
        (MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    assert [source["uid"] for source in provisioned["datasources"]] == [SOURCE.uid]
    providers = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/dashboards.yaml").read_text())
    path = providers["providers"][0]["options"]["path"].replace("${PWD}", str(MONITORING.parent))
    assert Path(path) == DASHBOARD.parent


def test_promtool_accepts_the_configuration_and_the_expressions(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool on the PATH (Debian: apt-get install prometheus)")
    shown = [one.replace("$__range", "1h") for one in expressions()]
    rules = [{"record": f"panel:{place}", "expr": one} for place, one in enumerate(shown)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for command in (
        ["check", "config", MONITORING / "prometheus.yml"],
        ["check", "rules", tmp_path / "rules.yml"],
    ):
        done = subprocess.run([promtool, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
