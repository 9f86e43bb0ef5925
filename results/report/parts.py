"""The parts of the page, and the view of one experiment that its sections are written from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.analysis import best_trials
from results.loading import ResultSet
from results.report import charts

CANVAS_MARKS = 1500
"""Charts with more marks are drawn on a canvas, which is faster; the others as SVG, which prints better."""


@dataclass(frozen=True)
class Figure:
    """A chart's place in the page."""

    id: str
    title: str
    description: str
    spec: Markup
    renderer: str
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; the first cell is its heading."""

    cells: Sequence[str]
    color: str | None = None


@dataclass(frozen=True)
class PageTable:
    """A table of the page."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Row]
    text: Sequence[int] = (0,)  # columns of text rather than numbers


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    id: str
    title: str
    charts: Sequence[Figure] = ()
    tables: Sequence[PageTable] = ()
    facts: Sequence[tuple[str, str]] = ()
    code: str = ""


@dataclass(frozen=True)
class ExperimentPart:
    """The page's part about one experiment."""

    key: str
    name: str
    verdict: str
    notice: str
    budget: str
    sections: Sequence[Section]


@dataclass
class View:
    """One experiment's results, with what every section needs."""

    results: ResultSet
    name: str
    key: str = ""
    methods: list[str] = field(default_factory=list)
    search: pd.DataFrame = field(default_factory=pd.DataFrame)
    best: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        self.key = re.sub(r"[^A-Za-z0-9]+", "-", self.name)
        self.methods = list(self.results.trials.method.unique())
        self.search = self.results.trials[self.results.trials.phase == "search"]
        self.best = best_trials(self.results.trials).set_index("method")

    def color(self, method: str) -> str:
        return charts.palette(self.methods)[method]

    def figure(self, name: str, title: str, chart: Any, description: str, wide: bool = False) -> Figure:
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


def p_value(value: float) -> str:
    """Write a p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
