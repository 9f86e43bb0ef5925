"""What the documents say of the result set is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from made_up import make_up

from results import load
from results.analysis import best_trials
from results.dictionary import dictionary
from results.schema import FAILED, STATUSES, TABLES

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = re.findall(r"^## (.*?)\n\n```python\n(.*?)```", (DOCS / "cookbook.md").read_text(), re.S | re.M)


def test_the_dictionary_is_what_the_schema_says() -> None:
    written = (DOCS / "result-set.md").read_text()
    assert written == dictionary(), "stale: python -m results.dictionary > docs/result-set.md"
    for schema in TABLES.values():
        for name in schema.names:
            assert f"| `{name}` |" in written


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_query_of_the_cookbook_runs(
    title: str,
    query: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_up("demo").save(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    exec(query, {})
    assert len(capsys.readouterr().out.splitlines()) > 3, "nothing was found"


@pytest.mark.parametrize("last", STATUSES)
def test_the_best_trial_of_the_cookbook_is_that_of_the_analysis(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy was made to rise by number, so the trial of the last status is the most accurate one."""
    made = make_up("demo", trials=len(STATUSES), examples=4)
    order = [*(status for status in STATUSES if status != last), last]
    for row in made.trials:
        if row["phase"] == "search":
            row["status"] = order[row["trial_number"]]
    made.save(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(dict(QUERIES)["Best trial so far of each method, by validation (pandas)"], scope)
    expected = best_trials(load("runs/demo").trials)
    assert sorted(scope["best"].trial_id) == sorted(expected.trial_id)
    assert len(expected) == 3
    assert ("lora-006" in set(expected.trial_id)) == (last not in FAILED)


def test_the_cookbook_uses_all_three_readers() -> None:
    assert {library for _, query in QUERIES for library in re.findall(r"^import (\w+)", query, re.M)} == {
        *("pandas", "duckdb", "polars", "results")
    }
