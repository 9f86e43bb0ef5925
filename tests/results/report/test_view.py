"""What the page takes a run to be, without a browser."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from made_up import make_up

from results import load
from results.report import write_report


def test_a_run_that_has_grown_is_described_as_what_it_is_now(tmp_path: Path) -> None:
    """Its confirm trials may be older than its last search trials, and stay last in the table."""
    made = make_up()
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
