"""The parts that the page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


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
    note: str = ""
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


def p_value(value: float) -> str:
    """Write a p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
