"""Every chart of the report, declared once, for the page's script and for PNG."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

import altair as alt
import pandas as pd

from results.analysis.metrics import amount
from results.analysis.tradeoffs import Directions, nondominated, pareto
from results.hyperparameters import describe_hyperparameters, hyperparameters_of
from results.loading import ResultSet

Chart = alt.Chart | alt.LayerChart | alt.HConcatChart

# Okabe and Ito's colours, distinguishable with all common kinds of colour blindness (Wong 2011).
COLORS: Final[Mapping[str, str]] = {
    "full": "#0072B2",
    "lora": "#E69F00",
    "dora": "#009E73",
    "qlora": "#CC79A7",
    "head": "#8C8C8C",
}
MORE_COLORS: Final = ("#56B4E9", "#D55E00", "#B8AD00", "#7A5195", "#5C8A00", "#A05A2C")
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")

SHARE: Final = ".1~%"
"""Format of axes of accuracies: with a decimal where there is one, so that no two ticks read alike."""

FAINT_TRIALS: Final = 60
"""Most curves drawn besides the best one; of more, evenly spaced ones are drawn."""

POINTS: Final = 600
"""Most trials of one method in a scatter plot, besides the best and efficient; of more, evenly spaced."""


def palette(methods: Sequence[str]) -> dict[str, str]:
    """Return each method's colour, the same in every chart and table."""
    others = cycle(MORE_COLORS)
    return {method: COLORS.get(method) or next(others) for method in methods}


def method_colors(methods: Sequence[str]) -> alt.Color:
    """Encode methods by colour."""
    colors = palette(methods)
    return alt.Color(
        "method:N", scale=alt.Scale(domain=list(colors), range=list(colors.values())), title=None
    )


def method_shapes(methods: Sequence[str]) -> alt.Shape:
    """Encode methods by shape as well, so that no chart relies on colour alone."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(methods))]
    return alt.Shape("method:N", scale=alt.Scale(domain=list(methods), range=shapes), title=None)


def cost_chart(
    table: pd.DataFrame, cost: str, title: str, unit: float, methods: Sequence[str], guessing: float | None
) -> Chart | None:
    """Draw the confirmed methods' test accuracy, with its interval, against a cost, and the Pareto front.

    Arguments:
        table: :func:`results.analysis.summary` of one experiment.
        cost: one of its columns.
        title: title of the cost axis.
        unit: divisor of the costs.
        methods: names, in the order of colours.
        guessing: accuracy of always answering the most frequent label; drawn unless it is so far below all
            intervals that they would get less than half of the chart.
    """
    directions: Directions = {"test_accuracy": "max", cost: "min"}
    rows = table.dropna(subset=list(directions))
    if rows.empty:
        return None
    data = pd.DataFrame(
        {
            "method": rows.method,
            "accuracy": rows.test_accuracy.astype(float).round(4),
            "low": rows.test_accuracy_low.astype(float).round(4),
            "high": rows.test_accuracy_high.astype(float).round(4),
            "cost": (rows[cost].astype(float) / unit).round(4),
            "configuration": _configurations(rows),
            "efficient": nondominated(rows, directions),
        }
    )
    x, y = _cost_axis(title), _accuracy_axis("test accuracy")
    base = alt.Chart(data).encode(x=x, color=method_colors(methods))
    interval = base.mark_rule(strokeWidth=2).encode(y=_accuracy_axis("test accuracy", "low"), y2="high:Q")
    point = base.mark_point(filled=True, opacity=1, size=110).encode(
        y=y,
        shape=method_shapes(methods),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("configuration:N"),
            alt.Tooltip("accuracy:Q", format=".1%", title="test accuracy"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
            alt.Tooltip("cost:Q", format=",.4~g", title=title),
        ],
    )
    if guessing is None or guessing < 2 * data.low.min() - data.high.max():
        return _front(data, x, y, _dashes(FRONT)) + interval + point
    dashes = _dashes(FRONT, GUESS)
    line = alt.Chart(pd.DataFrame({"accuracy": [guessing], "line": [GUESS]}))
    line = line.mark_rule(strokeWidth=2, color="#808080").encode(y=y, strokeDash=dashes)
    return _front(data, x, y, dashes) + line + interval + point


def search_cost_chart(
    trials: pd.DataFrame, best: Sequence[str], cost: str, title: str, unit: float, methods: Sequence[str]
) -> Chart | None:
    """Draw validation accuracy against a cost: every trial, the best large, and the completed ones' front.

    Arguments:
        trials: search trials of one experiment.
        best: ids of each method's best trial.
        cost: column of trials.
        title: title of the cost axis.
        unit: divisor of the costs.
        methods: names, in the order of colours.
    """
    directions: Directions = {"validation_accuracy": "max", cost: "min"}
    marked = pareto(ResultSet.of_trials(trials), directions, of="trials")
    if marked.empty:
        return None
    marked["best"] = marked.trial_id.isin(best)
    rows = _thinned(marked, marked.best | marked.efficient, POINTS)
    data = pd.DataFrame(
        {
            "method": rows.method,
            "trial": rows.trial_id,
            "accuracy": rows.validation_accuracy.round(4),
            "cost": (rows[cost] / unit).round(4),
            "configuration": _configurations(rows),
            "best": rows.best,
            "efficient": rows.efficient,
        }
    )
    x, y = _cost_axis(title), _accuracy_axis("validation accuracy")
    points = (
        alt.Chart(data)
        .mark_point(filled=True)
        .encode(
            x=x,
            y=y,
            color=method_colors(methods),
            shape=method_shapes(methods),
            size=alt.condition(alt.datum.best, alt.value(170), alt.value(45)),
            opacity=alt.condition(alt.datum.best, alt.value(1), alt.value(0.45)),
            tooltip=[
                alt.Tooltip("trial:N"),
                alt.Tooltip("configuration:N"),
                alt.Tooltip("accuracy:Q", format=".1%", title="validation accuracy"),
                alt.Tooltip("cost:Q", format=",.4~g", title=title),
            ],
        )
    )
    return _front(data, x, y, _dashes(FRONT)) + points


INSIDE: Final = alt.Scale(zero=False, padding=12)
"""Keeps marks so many pixels off the frame."""


FRONT: Final = "Pareto front"
GUESS: Final = "always the most frequent label"


def _dashes(*lines: str) -> alt.StrokeDash:
    """Encode the lines that are drawn by their dashes, and name them in the legend."""
    dashes = alt.Scale(domain=list(lines), range=[[4, 3] if line == FRONT else [1, 3] for line in lines])
    legend = alt.Legend(symbolStrokeColor="#808080", labelLimit=200)
    return alt.StrokeDash("line:N", title=None, scale=dashes, legend=legend)


def _configurations(rows: pd.DataFrame) -> list[str]:
    return [describe_hyperparameters(hyperparameters_of(row)) for _, row in rows.iterrows()]


def _cost_axis(title: str) -> alt.X:
    return alt.X("cost:Q", title=title, scale=INSIDE, axis=alt.Axis(tickCount=5))


def _accuracy_axis(title: str, field: str = "accuracy") -> alt.Y:
    return alt.Y(f"{field}:Q", title=title, scale=INSIDE, axis=alt.Axis(format=SHARE))


def _front(data: pd.DataFrame, x: alt.X, y: alt.Y, dashes: alt.StrokeDash) -> alt.Chart:
    """Draw the best accuracy that can be had for each cost."""
    line = alt.Chart(data[data.efficient].sort_values("cost").assign(line=FRONT))
    line = line.mark_line(interpolate="step-after", color="#808080")
    return line.encode(x=x, y=y, order="cost:Q", strokeDash=dashes)


def curve_domain(curves: pd.DataFrame, metric: str, best: Collection[str]) -> tuple[float, float]:
    """Return the range shared by all methods' learning curves, so that they can be compared.

    An exploding loss would flatten all other curves, so the highest 5% of the losses are cut off, except for
    the ``best`` trials.
    """
    values = curves[metric].dropna()
    if values.empty:
        return 0.0, 1.0
    low = values.min()
    high = values.max()
    if metric == "train_loss":
        high = max(values.quantile(0.95), curves[metric][curves.trial_id.isin(best)].max())
    margin = 0.05 * (high - low) or 0.01
    return float(low - margin), float(high + margin)


def shown_curves(curves: pd.DataFrame, best: str | None) -> pd.DataFrame:
    """Return the rows of the best trial and of at most so many others of a method as can be told apart."""
    ids = [trial for trial in curves.trial_id.unique() if trial != best]
    step = -(-len(ids) // FAINT_TRIALS) if ids else 1
    return curves[curves.trial_id.isin([*ids[::step], best])]


def curve_chart(
    shown: pd.DataFrame, best: str | None, metric: str, color: str, domain: tuple[float, float]
) -> Chart:
    """Draw one method's learning curves: the best trial bold and the others faint.

    Arguments:
        shown: metrics rows of those of its search trials that are drawn.
        best: id of its best trial.
        metric: ``train_loss`` or ``validation_accuracy``.
        color: the method's colour.
        domain: range of the vertical axis.
    """
    data = pd.DataFrame(
        {
            "trial": shown.trial_id,
            "epoch": shown.epoch.round(3),
            "value": shown[metric].round(4),
            "best": shown.trial_id == best,
        }
    )
    is_share = metric == "validation_accuracy"
    base = alt.Chart(data).encode(
        x=alt.X("epoch:Q", title="epoch"),
        y=alt.Y(
            "value:Q",
            title=metric.replace("_", " "),
            scale=alt.Scale(domain=domain, nice=False),
            axis=alt.Axis(format=SHARE if is_share else ".2~f", tickCount=5),
        ),
        detail="trial:N",
        tooltip=[
            alt.Tooltip("trial:N"),
            alt.Tooltip("epoch:Q", format=".2~f"),
            alt.Tooltip("value:Q", format=".1%" if is_share else ".3~f", title=metric.replace("_", " ")),
        ],
    )
    faint = base.transform_filter("!datum.best").mark_line(opacity=0.3, strokeWidth=1, color=color, clip=True)
    # Points make trials visible that were stopped at their first evaluation.
    dots = base.transform_filter("!datum.best").mark_point(
        opacity=0.3, size=8, filled=True, color=color, clip=True
    )
    bold = base.transform_filter("datum.best").mark_line(
        strokeWidth=3, color=color, clip=True, point=alt.OverlayMarkDef(color=color, size=45)
    )
    return faint + dots + bold


def has_bands(curve: pd.DataFrame) -> bool:
    """Say whether any method's interval is known at two numbers of trials, between which a band is drawn."""
    return bool((curve.groupby("method").low.count() > 1).any())


def budget_chart(curve: pd.DataFrame, methods: Sequence[str]) -> Chart:
    """Draw the expected best validation accuracy by number of trials, with bands as far as there are any."""
    data = curve.assign(**{name: curve[name].round(4) for name in ("expected_best", "low", "high")})
    base = alt.Chart(data).encode(
        x=alt.X("trials:Q", title="trials", axis=alt.Axis(tickMinStep=1, tickCount=8, format="d")),
        color=method_colors(methods),
    )
    y = alt.Y(
        "expected_best:Q",
        title="expected best accuracy",
        scale=alt.Scale(zero=False),
        axis=alt.Axis(format=SHARE),
    )
    band = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.12)
        .encode(y=alt.Y("low:Q", title="expected best accuracy", scale=alt.Scale(zero=False)), y2="high:Q")
    )
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=35)).encode(
        y=y,
        shape=method_shapes(methods),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("trials:Q"),
            alt.Tooltip("expected_best:Q", format=".1%", title="expected best"),
            alt.Tooltip("low:Q", format=".1%"),
            alt.Tooltip("high:Q", format=".1%"),
        ],
    )
    return band + line if has_bands(curve) else line


def rank_chart(trials: pd.DataFrame, domain: tuple[float, float]) -> Chart:
    """Draw one method's trials by rank and learning rate, coloured by accuracy.

    Arguments:
        trials: its search trials.
        domain: range of the colours, the same for all methods.
    """
    return (
        alt.Chart(_tuned(trials).assign(rank=trials.hp_rank))
        .mark_point(filled=True, size=130, opacity=1, stroke="#808080", strokeWidth=1)
        .encode(
            x=_rate_axis(),
            y=alt.Y("rank:O", title="rank", sort="descending"),
            color=alt.Color(
                "accuracy:Q",
                title="validation accuracy",
                scale=alt.Scale(scheme="cividis", domain=domain),
                legend=alt.Legend(format=SHARE, gradientLength=160, tickCount=3),
            ),
            tooltip=[
                alt.Tooltip("trial:N"),
                alt.Tooltip("rank:O"),
                alt.Tooltip("learning_rate:Q", format=".2~e"),
                alt.Tooltip("accuracy:Q", format=".1%", title="validation accuracy"),
            ],
        )
    )


def rate_chart(trials: pd.DataFrame, color: str, domain: tuple[float, float]) -> Chart:
    """Draw one method's accuracy by learning rate, for methods without a rank.

    Arguments:
        trials: its search trials.
        color: the method's colour.
        domain: range of the accuracies, the same for all methods.
    """
    return (
        alt.Chart(_tuned(trials))
        .mark_point(filled=True, size=60, color=color)
        .encode(
            x=_rate_axis(),
            y=alt.Y(
                "accuracy:Q",
                title="validation accuracy",
                scale=alt.Scale(domain=domain, padding=12),
                axis=alt.Axis(format=SHARE, tickCount=5),
            ),
            tooltip=[
                alt.Tooltip("trial:N"),
                alt.Tooltip("learning_rate:Q", format=".2~e"),
                alt.Tooltip("accuracy:Q", format=".1%", title="validation accuracy"),
            ],
        )
    )


def _tuned(trials: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": trials.trial_id,
            "learning_rate": trials.hp_learning_rate.astype(float),
            "accuracy": trials.validation_accuracy.round(4),
        }
    )


def _rate_axis() -> alt.X:
    return alt.X(
        "learning_rate:Q",
        title="learning rate",
        scale=alt.Scale(type="log", padding=12, nice=False),
        axis=alt.Axis(format=".0e", tickCount=4, labelFlush=12),
    )


def difference_chart(differences: pd.DataFrame) -> Chart:
    """Draw every pair's difference in test accuracy with its interval, in points."""
    data = pd.DataFrame(
        {
            "pair": differences.method_a + " − " + differences.method_b,
            "difference": (100 * differences.difference).round(2),
            "low": (100 * differences.low).round(2),
            "high": (100 * differences.high).round(2),
            "shown": differences.different.map({True: "difference shown", False: "no difference shown"}),
            "verdict": differences.verdict,
        }
    )
    base = alt.Chart(data).encode(
        y=alt.Y("pair:N", title=None, sort=list(data.pair), axis=alt.Axis(labelLimit=220)),
        color=alt.Color(
            "shown:N",
            title=None,
            scale=alt.Scale(domain=["difference shown", "no difference shown"], range=["#D55E00", "#8C8C8C"]),
        ),
        tooltip=["verdict:N"],
    )
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(strokeDash=[3, 3], color="#808080").encode(x="x:Q")
    title = "difference in test accuracy, points, with 95% interval"
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    rule = rule.encode(x=alt.X("low:Q", title=title), x2="high:Q")
    point = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=alt.X("difference:Q", title=title),
        shape=alt.Shape(
            "shown:N",
            title=None,
            scale=alt.Scale(domain=["difference shown", "no difference shown"], range=["diamond", "circle"]),
        ),
    )
    return zero + rule + point if data.low.notna().any() else zero + point


def bar_chart(table: pd.DataFrame, column: str, title: str, unit: float, methods: Sequence[str]) -> Chart:
    """Draw one bar per method, with its number."""
    data = pd.DataFrame(
        {
            "method": table.method,
            "value": (table[column].astype(float) / unit),
            "text": [amount(value, column) for value in table[column].astype(float)],
        }
    ).dropna()
    longest = float(data.value.max()) if len(data) else 0.0
    with_text = alt.Scale(domain=[0, 1.15 * longest or 1])  # room for the longest bar's number
    base = alt.Chart(data).encode(
        x=alt.X("value:Q", title=title, scale=with_text, axis=alt.Axis(tickCount=5)),
        y=alt.Y("method:N", title=None, sort=list(methods)),
    )
    bars = base.mark_bar().encode(color=method_colors(methods).legend(None))
    return bars + base.mark_text(align="left", dx=4).encode(text="text:N")


def study_chart(curves: pd.DataFrame, methods: Sequence[str]) -> Chart:
    """Draw the best trial of every method: training loss and validation accuracy by epoch."""
    base = alt.Chart(curves).encode(
        x=alt.X("epoch:Q", title="epoch"), color=method_colors(methods), shape=method_shapes(methods)
    )
    parts = [
        base.mark_line(point=alt.OverlayMarkDef(size=40))
        .encode(y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=form)))
        .properties(width=330, height=260)
        for column, title, form in (
            ("train_loss", "training loss", ".2~f"),
            ("validation_accuracy", "validation accuracy", SHARE),
        )
    ]
    return alt.hconcat(*parts)


def _thinned(frame: pd.DataFrame, keep: pd.Series, most: int) -> pd.DataFrame:
    """Return the rows to keep, and at most so many evenly spaced other rows of each method."""
    others = frame[~keep]
    taken = [
        group.iloc[:: -(-len(group) // most)] if len(group) else group
        for _, group in others.groupby("method", sort=False)
    ]
    return pd.concat([*taken, frame[keep]])


def to_spec(chart: Chart) -> dict[str, Any]:
    """Return a chart's Vega-Lite specification, including all data."""
    with alt.data_transformers.enable(max_rows=None):
        return dict(chart.to_dict())


def page_spec(chart: Chart, description: str) -> dict[str, Any]:
    """Return the specification of a chart that fills the width of its container in the page."""
    sized = chart.properties(width="container", height=260, description=description)
    return {**to_spec(sized), "autosize": {"type": "fit-x", "contains": "padding"}}
