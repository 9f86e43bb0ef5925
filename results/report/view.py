"""The view of one experiment that its part of the page is written from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.analysis import best_trials, summary
from results.analysis.metrics import guessing
from results.errors import ResultSetError
from results.loading import ResultSet
from results.report import charts
from results.report.parts import Figure

CANVAS_MARKS = 1500
"""Charts with more marks are drawn on a canvas, which is faster; the others as SVG, which prints better."""


@dataclass(frozen=True)
class View:
    """One experiment's results, with what every section needs."""

    results: ResultSet
    name: str
    key: str  # its name, fit for ids and file names

    @cached_property
    def methods(self) -> list[str]:
        """The methods' names, in the order of colours."""
        return list(self.results.trials.method.unique())

    @cached_property
    def search(self) -> pd.DataFrame:
        """The trials of the search phase."""
        return self.results.trials[self.results.trials.phase == "search"]

    @cached_property
    def best(self) -> pd.DataFrame:
        """Each method's best trial so far, by method."""
        return best_trials(self.results.trials).set_index("method")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The table across methods."""
        return summary(self.results)

    def cost_chart(self, cost: str, title: str, unit: float) -> charts.Chart | None:
        """Draw accuracy against a cost: of the confirmed methods, or as long as there are none, of trials."""
        if self.is_confirmed:
            guess = guessing(self.results, self.name)
            share = guess[1] if guess else None
            return charts.cost_chart(self.summary, cost, title, unit, self.methods, share)
        best = list(self.best.trial_id)
        return charts.search_cost_chart(self.search, best, cost, title, unit, self.methods)

    @cached_property
    def is_confirmed(self) -> bool:
        """Whether any method has been judged on the test split."""
        return bool(self.summary.test_accuracy.notna().any())

    @cached_property
    def latest_first(self) -> pd.DataFrame:
        """The trials by their start: a run may have grown, and its last trials know what it is now."""
        return self.results.trials.sort_values(
            "started_at", ascending=False, kind="stable", na_position="last"
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The experiment file's settings; empty if the run does not record them."""
        texts = self.latest_first.settings.dropna()
        settings = json_object(texts.iloc[0], "settings").get("experiment") if len(texts) else None
        return settings if isinstance(settings, dict) else {}

    def color(self, method: str) -> str:
        """Return a method's colour."""
        return charts.palette(self.methods)[method]

    def figure(self, name: str, title: str, chart: Any, description: str, wide: bool = False) -> Figure:
        """Place a chart in the page."""
        spec = charts.page_spec(chart, description)
        marks = sum(len(rows) for rows in spec.get("datasets", {}).values())
        return Figure(
            id=f"{self.key}-chart-{name}",
            title=title,
            description=description,
            spec=Markup(json.dumps(spec).replace("<", "\\u003c")),
            renderer="canvas" if marks > CANVAS_MARKS else "svg",
            wide=wide,
        )


def json_object(text: Any, column: str) -> dict[str, Any]:
    """Read a JSON object from a column of trials; null is an empty one.

    Raises:
        ResultSetError: if it holds anything else.
    """
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ResultSetError(f"trials.parquet: column {column!r} has {text!r:.40}; expected a JSON object")
    return found
