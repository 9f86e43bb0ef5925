"""``report/index.html``, one self-contained page, and the figures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from results.analysis import ranks
from results.loading import ResultSet
from results.report import charts
from results.report.across import ranks_note, ranks_table
from results.report.headline import budget_rule_of, notice_of, verdict_of
from results.report.parts import ExperimentPart
from results.report.sections import write_sections
from results.report.view import View
from results.store import replace_file


def write_report(results: ResultSet, directory: Path, cache: Path | None = None) -> Path:
    """Write ``index.html`` and ``figures/*.png`` about one or several experiments.

    Arguments:
        results: the experiments' results.
        directory: where to write; created if missing.
        cache: directory for what the next report can reuse, if any.

    Returns:
        The path of the page.
    """
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    keys = make_keys(results.trials.experiment.unique())
    views = [View(results.of(name), name, key) for name, key in keys.items()]
    page = directory / "index.html"
    replace_file(page, render_page(results, views, cache).encode())
    for view in views:
        prefix = f"{view.key}-" if len(views) > 1 else ""
        for name, chart in study_figures(view).items():
            png = vl_convert.vegalite_to_png(charts.to_spec(chart), scale=2)
            replace_file(figures / f"{prefix}{name}.png", png)
    return page


def make_keys(names: Iterable[str]) -> dict[str, str]:
    """Return a key for each experiment's name, fit for ids and file names."""
    keys: dict[str, str] = {}
    for number, name in enumerate(names):
        key = re.sub(r"[^A-Za-z0-9]+", "-", name)
        is_taken = key in keys.values()  # such as for 'sst2_r8' and 'sst2.r8'
        keys[name] = f"{key}-{number}-" if is_taken else key
    return keys


def render_page(results: ResultSet, views: Sequence[View], cache: Path | None) -> str:
    """Return the page as text."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    here = files("results.report")
    across = ranks(results)
    return environment.from_string((here / "page.html").read_text()).render(
        title=", ".join(view.name for view in views),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        experiments=[write_part(view) for view in views],
        across=ranks_table(across) if len(across) else None,
        across_note=ranks_note(across) if len(across) else "",
        style=Markup((here / "style.css").read_text()),
        script=Markup((here / "page.js").read_text()),
        library=Markup(chart_library(cache)),
    )


def write_part(view: View) -> ExperimentPart:
    """Write the page's part about one experiment."""
    sections = write_sections(view)
    return ExperimentPart(
        view.key, view.name, verdict_of(view), notice_of(view), budget_rule_of(view), sections
    )


def chart_library(cache: Path | None) -> str:
    """Return the script that draws the page's charts, which takes a second to bundle.

    Arguments:
        cache: directory in which to keep it for the next page, if any.
    """
    file = cache / f"charts-{version('vl-convert-python')}.js" if cache else None
    if file:
        with suppress(OSError):  # not cached yet
            return file.read_text(encoding="utf-8")
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if file:
        with suppress(OSError):  # without a cache, the next page takes that second again
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, script.encode())
    return script


def study_figures(view: View) -> dict[str, Any]:
    """Return the figures to write as PNG: the founding study's three, and the Pareto chart."""
    table = view.summary[view.summary.model_bytes.notna()]
    if table.empty:
        return {}
    curves = view.results.metrics[view.results.metrics.trial_id.isin(view.best.trial_id)]
    drawn = {
        "training_and_validation": charts.study_chart(
            curves[["method", "epoch", "train_loss", "validation_accuracy"]], view.methods
        ),
        "model_size": charts.bar_chart(table, "model_bytes", "model as loaded, MB", 1e6, view.methods),
        "execution_time": charts.bar_chart(
            table, "train_seconds", "training of one trial, s", 1, view.methods
        ),
        "pareto": view.cost_chart("peak_memory_bytes", "peak memory, MB", 1e6),
    }
    sizes = {"model_size": (480, 200), "execution_time": (480, 200), "pareto": (520, 340)}
    return {
        name: chart.properties(width=sizes[name][0], height=sizes[name][1]) if name in sizes else chart
        for name, chart in drawn.items()
        if chart is not None
    }
