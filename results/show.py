"""``python -m results.show runs/NAME``: the verdict and the table across methods, in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from results.analysis import summary, verdict
from results.analysis.bootstrap import estimate
from results.analysis.metrics import (
    COMPARABLE,
    HIGHER_IS_BETTER,
    check_metric,
    level_with_interval,
    samples,
    why_costs_mislead,
)
from results.analysis.summary import DRAWS
from results.errors import ResultSetError
from results.hyperparameters import describe_hyperparameters, hyperparameters_of
from results.loading import load
from results.terminal import console

if TYPE_CHECKING:
    from results.loading import ResultSet


def render(results: ResultSet, metric: str = "test_accuracy", sort: str | None = None) -> Group:
    """Build the terminal's view of every experiment: the table across methods, and the verdict."""
    table = summary(results)
    parts: list[Any] = []
    for experiment in results.trials.experiment.unique():
        rows = _sorted(table[table.experiment == experiment], sort)
        parts.append(_table(experiment, rows, metric, _judged(results, experiment, metric)))
        parts.append(Text(verdict(results, experiment, metric)))
        if reason := why_costs_mislead(results.trials[results.trials.experiment == experiment]):
            parts.append(Text(reason))
    return Group(*parts)


def _sorted(rows: pd.DataFrame, sort: str | None) -> pd.DataFrame:
    """Sort by a column, best or else lowest first; without one, keep the experiment's order of methods."""
    if sort is None:
        return rows
    if sort not in rows:
        raise ValueError(f"--sort: expected one of {', '.join(rows.columns)}, got {sort!r}")
    return rows.sort_values(sort, ascending=sort not in HIGHER_IS_BETTER)


def _judged(results: ResultSet, experiment: str, metric: str) -> dict[str, str]:
    """Return each confirmed method's mean of a metric over the confirm phase, with its 95% interval."""
    found = {name: estimate(one) for name, one in samples(results, experiment, metric, DRAWS).items()}
    return {
        name: level_with_interval(one.mean, one.low, one.high, metric)
        for name, one in found.items()
        if one.seeds
    }


def _table(experiment: str, rows: pd.DataFrame, metric: str, judged: dict[str, str]) -> Table:
    table = Table(title=Text(experiment), title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("trials", justify="right")
    table.add_column("validation", justify="right")
    if judged:
        heading = "test" if metric == "test_accuracy" else metric.replace("_", " ")
        table.add_column(f"{heading} [95%]", justify="right", no_wrap=True)
    table.add_column("best configuration", overflow="fold", ratio=1)
    for heading in ("trainable", "model MB", "peak MB", "train s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in rows.iterrows():
        count = f"{row.trials}" + (f" ({row.failed} failed)" if row.failed else "")
        if pd.isna(row.validation_accuracy):
            table.add_row(Text(row.method), count, "-", *(["-"] if judged else []), "no trial finished")
            continue
        table.add_row(
            Text(row.method),
            count,
            f"{row.validation_accuracy:.1%}",
            *([judged.get(row.method, "-") + _failed(row)] if judged else []),
            Text(describe_hyperparameters(hyperparameters_of(row))),
            _number(row.trainable_parameters),
            _number(row.model_bytes, 1e6, 1),
            _number(row.peak_memory_bytes, 1e6),
            _number(row.train_seconds, 1, 1),
        )
    return table


def _failed(row: pd.Series) -> str:
    return f" ({row.confirm_failed} failed)" if row.confirm_failed else ""


def _number(value: Any, unit: float = 1, digits: int = 0) -> str:
    return "-" if pd.isna(value) else f"{value / unit:,.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m results.show", description="Show the verdict and the table across methods."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, directory of run directories, or glob; a path or a URI",
    )
    parser.add_argument(
        "--metric",
        default="test_accuracy",
        metavar="NAME",
        help=f"what methods are judged by (default test_accuracy): {', '.join(COMPARABLE)}",
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="column to sort methods by, of those in --format csv"
    )
    parser.add_argument("--format", choices=("table", "json", "csv", "markdown"), default="table")
    options = parser.parse_args(arguments)
    try:
        check_metric(options.metric)
        results = load(options.runs)
        if options.format == "table":
            console(sys.stdout).print(render(results, options.metric, options.sort))
            return 0
        table = _sorted(summary(results), options.sort)
    except (OSError, ResultSetError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.format == "json":
        print(table.to_json(orient="records", indent=2))
    elif options.format == "csv":
        print(table.to_csv(index=False), end="")
    else:
        print(_markdown(table))
    return 0


def _markdown(table: pd.DataFrame) -> str:
    """Write a Markdown table; a null is an empty cell."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [["" if pd.isna(cell) else str(cell) for cell in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
