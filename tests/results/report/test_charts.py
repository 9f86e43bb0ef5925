"""What the page's charts and texts say, without a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from results import load
from results.report import write_report
from results.report.charts import curve_domain

Maker = Callable[..., Any]


def test_losses_that_explode_are_cut_off_and_the_best_trials_never_are() -> None:
    ids = [f"lora-{number:03d}" for number in range(50)]
    curves = pd.DataFrame({"trial_id": ids, "train_loss": [0.5] * 48 + [1.2, 900.0]})
    assert curve_domain(curves, "train_loss", ["lora-000"])[1] < 0.6
    assert 1.2 < curve_domain(curves, "train_loss", ["lora-000", "lora-048"])[1] < 1.3
    assert curve_domain(curves, "train_loss", [])[1] < 0.6


def test_a_run_that_has_grown_is_described_as_what_it_is_now(made_up: Maker, tmp_path: Path) -> None:
    """Its confirm trials may be older than its last search trials, and stay last in the table."""
    made = made_up()
    last = next(row for row in made.trials if row["phase"] == "search")
    settings = json.loads(last["settings"])["experiment"]
    grown = {**settings, "search": {**settings.get("search", {}), "trials": 77}}
    last |= {
        "settings": json.dumps({"experiment": grown}),
        "started_at": last["started_at"] + timedelta(days=1),
        "git_revision": "newest",
    }
    run = made.save(tmp_path / "run")
    page = write_report(load(run), run / "report").read_text()
    assert "each method had 77 trials" in page
    assert "newest" in page
