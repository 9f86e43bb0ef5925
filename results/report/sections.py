"""The sections of the page, in order, each written from one experiment's view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import yaml

from results.analysis import budget_curve, claims, compare, importance
from results.analysis.claims import UNKNOWN
from results.analysis.metrics import examples_per_test_second, good_trials, guessing
from results.analysis.tuning import ONLY_CHANCE, TOO_FEW, TRIALS_EACH
from results.hyperparameters import describe_hyperparameters, hyperparameters_of
from results.report import charts
from results.report.parts import Figure, PageTable, Row, Section, p_value
from results.report.view import View, json_object
from results.schema import FAILED, UNFINISHED

COSTS = (
    ("peak_memory_bytes", "peak memory, MB", 1e6),
    ("train_seconds", "train time, s", 1.0),
    ("model_bytes", "model as loaded, MB", 1e6),
    ("checkpoint_bytes", "checkpoint on disk, MB", 1e6),
)

MEMORY = {
    "process_high_water": "of the whole worker process, Python and its libraries included",
    "cuda_allocator": "what PyTorch's allocator gave out on the GPU",
}
"""What each source of peak memory measures."""

NO_REVISION = "of unknown revision: there was no git checkout, or no git to read it"

FAILURES_SHOWN = 50


def write_sections(view: View) -> list[Section]:
    """Write the sections about one experiment, without those that would be empty."""
    parts: tuple[Callable[[View], Section | None], ...] = (
        _methods_section,
        _costs_section,
        _losses_section,
        _accuracies_section,
        _tuning_section,
        _hyperparameters_section,
        _differences_section,
        _claims_section,
        _failures_section,
        _provenance_section,
    )
    return [section for part in parts if (section := part(view)) is not None]


def _methods_section(view: View) -> Section:
    speeds = examples_per_test_second(view.results, view.name)
    rows = [
        Row(
            (
                row.method,
                f"{row.trials}" + (f", {row.failed} failed" if row.failed else ""),
                _share(row.validation_accuracy),
                _share(row.test_accuracy) + (f", {row.confirm_failed} failed" if row.confirm_failed else ""),
                "–"
                if pd.isna(row.test_accuracy)
                else f"{100 * row.test_accuracy_low:.1f} to {100 * row.test_accuracy_high:.1f}",
                describe_hyperparameters(hyperparameters_of(row)) or "–",
                _number(row.trainable_parameters),
                _number(row.model_bytes / 1e6, 1),
                _number(row.checkpoint_bytes / 1e6, 1),
                _number(row.peak_memory_bytes / 1e6),
                _number(row.train_seconds, 1),
                _number(row.search_train_seconds, 1),
                _number(speeds.get(row.method, float("nan"))),
            ),
            view.color(row.method),
        )
        for _, row in view.summary.iterrows()
    ]
    caption = (
        "Each method with its best configuration. Test accuracy is the mean over the confirm phase's seeds, "
        "with its 95% interval and the number of that phase's trials that failed. Trainable is a number of "
        "parameters. MB are those of the model as loaded, of its checkpoint on disk, and of memory at its "
        "peak. Train s is the training of one trial, search s that of all trials of the search; test/s is "
        "the test examples labelled per second."
    )
    headings = (
        *(
            "method",
            "trials",
            "validation",
            "test",
            "95% interval",
            "best configuration",
            "trainable",
        ),
        *("model MB", "disk MB", "peak MB", "train s", "search s", "test/s"),
    )
    return Section(f"{view.key}-methods", "Methods", tables=[PageTable(caption, headings, rows, (0, 5))])


def _costs_section(view: View) -> Section | None:
    figures = []
    for column, title, unit in COSTS:
        chart = view.cost_chart(column, title, unit)
        if chart is not None:
            what = title.split(",")[0]
            description = (
                f"Test accuracy of each confirmed method, with its 95% interval, against its {what}."
                if view.is_confirmed
                else f"Validation accuracy against {what} of every search trial that did not fail; large "
                "marks are each method's best."
            )
            figures.append(view.figure(column, f"Accuracy against {what}", chart, description))
    if not figures:
        return None
    note = _confirmed_note(view) if view.is_confirmed else _search_note(view)
    return Section(f"{view.key}-costs", "What accuracy costs", charts=figures, note=note)


def _confirmed_note(view: View) -> str:
    """Say what the charts of confirmed methods show besides them."""
    note = (
        "Accuracies and costs are means over the confirm phase's trials. By these means, no method is both "
        "more accurate and cheaper than those on the dashed line, the Pareto front."
    )
    missing = view.summary.method[view.summary.test_accuracy.isna()]
    if len(view.methods) - len(missing) > 1:
        note += " Which differences are more than chance is said under Differences."
    if guess := guessing(view.results, view.name):
        note += f" Always answering {guess[0]!r} scores {guess[1]:.1%}."
    return note + (f" Not confirmed, so not shown: {', '.join(missing)}." if len(missing) else "")


def _search_note(view: View) -> str:
    """Say which trials the front of a search is made of."""
    ended_early = view.search.status.isin(["stopped", *UNFINISHED]).any()
    early = " Only trials that ran to their end count for it: others are cheap because they did not."
    return "No trial is both more accurate and cheaper than those on the dashed line, the Pareto front." + (
        early if ended_early else ""
    )


def _losses_section(view: View) -> Section | None:
    return _curves_section(view, "train_loss", "Training loss")


def _accuracies_section(view: View) -> Section | None:
    return _curves_section(view, "validation_accuracy", "Validation accuracy")


def _curves_section(view: View, metric: str, title: str) -> Section | None:
    """Show a metric's learning curves, the methods side by side."""
    curves = view.results.metrics[view.results.metrics.phase == "search"]
    low, high = charts.curve_domain(curves, metric, set(view.best.trial_id))
    figures = []
    for method in view.methods:
        mine = curves[curves.method == method]
        if mine.empty:
            continue
        best = view.best.trial_id.get(method)
        shown = charts.shown_curves(mine, best)
        chart = charts.curve_chart(shown, best, metric, view.color(method), (low, high))
        count, drawn = mine.trial_id.nunique(), shown.trial_id.nunique()
        of = f"{drawn} of its {count} trials" if drawn < count else f"all {count} trials"
        bold = f"best trial {best} in bold" if best else "no best trial yet"
        cut = f" Values above {high:.2f} are cut off." if (shown[metric] > high).any() else ""
        description = f"{title} of {method} by epoch: {of}, {bold}.{cut}"
        figures.append(view.figure(f"{metric}-{method}", f"{method}: {title.lower()}", chart, description))
    return Section(f"{view.key}-{metric}-curves", title, charts=figures) if figures else None


def _tuning_section(view: View) -> Section | None:
    curve = budget_curve(view.results)
    if curve.empty or view.best.empty:
        return None
    description = (
        "Expected best validation accuracy by number of trials (Tang et al. 2020, equation 3): a method with "
        "a flat curve needs little tuning. It takes trials to be independent and complete; TPE's learn from "
        "each other, and early stopping cuts some short."
    )
    if charts.has_bands(curve):
        description += " Bands are rough, and end at a third of the trials."
    figure = view.figure(
        "tuning",
        "How much tuning each method needs",
        charts.budget_chart(curve, view.methods),
        description,
        wide=True,
    )
    return Section(f"{view.key}-tuning", "Tuning", charts=[figure])


def _hyperparameters_section(view: View) -> Section | None:
    figures = _tuned_figures(view)
    shares = importance(view.results)
    told = shares[shares.note == ""]
    rows = [
        Row(
            (row.method, row.hyperparameter, f"{row.importance:.0%}", f"{row.trials}"), view.color(row.method)
        )
        for row in told.itertuples()
    ]
    caption = (
        "How much each hyperparameter matters: its share of what a method's hyperparameters together explain "
        "of the differences in validation accuracy between its trials (functional ANOVA)."
    )
    headings = ("method", "hyperparameter", "importance", "trials")
    tables = [PageTable(caption, headings, rows, (0, 1))] if rows else []
    if not figures and shares.empty:
        return None
    return Section(
        f"{view.key}-hyperparameters",
        "Hyperparameters",
        charts=figures,
        note=_untold(shares),
        tables=tables,
    )


def _tuned_figures(view: View) -> list[Figure]:
    """Show where in its search space each method was accurate, on scales that the methods share."""
    good = good_trials(view.search, "validation_accuracy")
    trials = {method: good[good.method == method] for method in view.methods}
    ranked = [method for method in trials if _has_numbers(trials[method], "hp_rank")]
    colors = _range(good.validation_accuracy[good.method.isin(ranked)])
    heights = _range(good.validation_accuracy[~good.method.isin(ranked)])
    figures = []
    for method, mine in trials.items():
        if not _has_numbers(mine, "hp_learning_rate"):
            continue
        if method in ranked:
            chart, axes = charts.rank_chart(mine, colors), "rank and learning rate"
        else:
            chart, axes = charts.rate_chart(mine, view.color(method), heights), "learning rate"
        description = f"Validation accuracy of every trial of {method} that did not fail, by {axes}."
        figures.append(view.figure(f"tuned-{method}", method, chart, description))
    return figures


def _range(values: pd.Series) -> tuple[float, float]:
    """Return the lowest and highest value, or if they are the same, a little less and a little more."""
    low, high = values.min(), values.max()
    return (low, high) if low < high else (low - 0.01, high + 0.01)


def _has_numbers(trials: pd.DataFrame, column: str) -> bool:
    """Say whether a column of hyperparameters is there and has numbers above 0 alone, as a chart needs."""
    known = trials[column].dropna() if column in trials else pd.Series()
    return pd.api.types.is_numeric_dtype(known) and len(known) > 0 and bool((known > 0).all())


def _untold(shares: pd.DataFrame) -> str:
    """Say of which methods it cannot be told how much each hyperparameter matters, and why."""
    methods = shares.groupby("note").method.unique().map(", ".join)
    said = []
    if TOO_FEW in methods:
        said.append(
            f"How much each hyperparameter matters cannot be told for {methods[TOO_FEW]}: that takes "
            f"{TRIALS_EACH} trials for each hyperparameter that varied."
        )
    if ONLY_CHANCE in methods:
        said.append(f"For {methods[ONLY_CHANCE]}, no hyperparameter is seen to matter more than by chance.")
    return " ".join(said)


def _differences_section(view: View) -> Section | None:
    differences = compare(view.results)
    if differences.empty:
        return None
    description = (
        "Difference in test accuracy of every pair of methods, first minus second, with its 95% interval. A "
        "diamond marks a difference that is shown after Holm's correction for the number of pairs. A pair "
        "with fewer than two seeds in common has no interval."
    )
    chart = charts.difference_chart(differences)
    figure = view.figure("differences", "Differences in test accuracy", chart, description, wide=True)
    rows = [
        Row(
            (
                f"{row.method_a} − {row.method_b}",
                _points(row.difference),
                "–" if pd.isna(row.low) else f"{_points(row.low)} to {_points(row.high)}",
                "–" if pd.isna(row.p_corrected) else p_value(row.p_corrected),
                row.verdict,
            )
        )
        for row in differences.itertuples()
    ]
    fewest, most = differences.seeds.min(), differences.seeds.max()
    seeds = (
        "1 seed" if most == 1 else f"{most} seeds" if fewest == most else f"{fewest} to {most} common seeds"
    )
    caption = (
        f"Paired, over {seeds} and {differences.examples.iloc[0]:,} test examples. Intervals are for each "
        "pair alone; p-values and verdicts are corrected for the number of pairs by Holm's method. What is "
        "compared is each method as tuned here: the luck of the search is not in the intervals."
    )
    headings = ("pair", "difference, points", "95% interval", "p", "verdict")
    return Section(
        f"{view.key}-differences",
        "Differences",
        charts=[figure],
        tables=[PageTable(caption, headings, rows, (0, 4))],
    )


def _claims_section(view: View) -> Section | None:
    found = claims(view.results)
    if found.empty or (found.verdict == UNKNOWN).all():
        return None
    rows = [Row((row.claim, row.verdict, row.evidence)) for row in found.itertuples()]
    caption = (
        "What a study of GPT-2 on SST-2 found, with one run of each method, checked against this experiment."
    )
    return Section(
        f"{view.key}-claims",
        "Claims",
        tables=[PageTable(caption, ("claim", "verdict", "evidence"), rows, (0, 1, 2))],
    )


def _failures_section(view: View) -> Section | None:
    failed = view.results.trials[view.results.trials.status.isin(FAILED)]
    if failed.empty:
        return None
    rows = [
        Row(
            (
                row.trial_id,
                row.status.replace("_", " "),
                row.error if isinstance(row.error, str) else "–",
                describe_hyperparameters(hyperparameters_of(row)),
            ),
            view.color(row.method),
        )
        for _, row in failed.head(FAILURES_SHOWN).iterrows()
    ]
    more = f" The first {FAILURES_SHOWN} are listed." if len(failed) > FAILURES_SHOWN else ""
    caption = f"{len(failed)} of {len(view.results.trials)} trials failed.{more}"
    headings = ("trial", "status", "error", "configuration")
    return Section(
        f"{view.key}-failures", "Failures", tables=[PageTable(caption, headings, rows, (0, 1, 2, 3))]
    )


def _provenance_section(view: View) -> Section:
    trials = view.results.trials
    row = view.latest_first.iloc[0]
    sources = sorted(set(trials.peak_memory_source.dropna()))
    splits, versions = json_object(row.splits, "splits"), json_object(row.versions, "versions")
    facts = [
        ("base model", f"{row.base_model} (weights {_short(row.base_model_fingerprint)})"),
        ("dataset", f"{row.dataset} (tokens {_short(row.dataset_fingerprint)})"),
        *((name, how) for name, how in splits.items()),
        ("program", row.git_revision if isinstance(row.git_revision, str) else NO_REVISION),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("devices", ", ".join(sorted(set(trials.device.dropna()))) or "–"),
        ("nodes", ", ".join(sorted(set(trials.node.dropna()))) or "–"),
        ("peak memory", "; ".join(MEMORY.get(source, source) for source in sources) or "–"),
        ("trials", f"{len(trials)} from {_time(trials.started_at.min())} to {_time(trials.ended_at.max())}"),
    ]
    code = yaml.safe_dump(view.settings, sort_keys=False, allow_unicode=True)
    return Section(f"{view.key}-provenance", "Provenance", facts=facts, code=code)


def _share(value: Any) -> str:
    return "–" if pd.isna(value) else f"{value:.1%}"


def _points(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:+.1f}".replace("-", "−")


def _number(value: Any, digits: int = 0) -> str:
    return "–" if pd.isna(value) else f"{value:,.{digits}f}"


def _short(fingerprint: Any) -> str:
    return fingerprint[:12] if isinstance(fingerprint, str) else "–"


def _time(value: Any) -> str:
    return "–" if pd.isna(value) else value.strftime("%Y-%m-%d %H:%M:%S UTC")
