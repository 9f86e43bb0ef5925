"""Which methods or trials are worth their cost: Pareto fronts and their hypervolume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import moocore
import numpy as np
import pandas as pd

from results.analysis.metrics import good_trials
from results.analysis.summary import summary

if TYPE_CHECKING:
    from results.loading import ResultSet

Directions = Mapping[str, Literal["max", "min"]]

ACCURACY_AGAINST_MEMORY: Directions = {"validation_accuracy": "max", "peak_memory_bytes": "min"}


def pareto(
    results: ResultSet,
    metrics: Directions = ACCURACY_AGAINST_MEMORY,
    of: Literal["methods", "trials"] = "methods",
) -> pd.DataFrame:
    """Return methods or trials, marking those that no other in their experiment dominates.

    Arguments:
        results: one or more experiments.
        metrics: columns of :func:`summary` or of trials, and which direction is better.
        of: what to compare; of the trials, only search trials that did not fail. Only those that completed
            can be efficient or dominate others: what ended early is cheap for that reason alone.

    Returns:
        The rows that have a value for every metric, with a column ``efficient``.

    Raises:
        ValueError: if a metric is not a numeric column, or a direction neither max nor min.
    """
    frame = summary(results) if of == "methods" else good_trials(results.trials)
    _check(frame, metrics)
    frame = frame.dropna(subset=list(metrics)).copy()
    frame["efficient"] = False
    compared = frame if of == "methods" else frame[frame.status == "completed"]
    for _, group in compared.groupby("experiment"):
        frame.loc[group.index, "efficient"] = nondominated(group, metrics)
    return frame


def nondominated(frame: pd.DataFrame, metrics: Directions) -> Any:
    """Return, for each row, whether no other row is better in one metric and as good in all: [rows], bool."""
    values = frame[list(metrics)].to_numpy(float)
    maximise = [way == "max" for way in metrics.values()]
    return moocore.is_nondominated(values, maximise=maximise, keep_weakly=True)


def hypervolume(frame: pd.DataFrame, metrics: Directions, reference: Mapping[str, float]) -> float:
    """Return the volume between a set of points and a reference point that is worse in every metric.

    Arguments:
        frame: one row per point.
        metrics: columns, and which direction is better.
        reference: a value for each metric.

    Raises:
        ValueError: as :func:`pareto`.
    """
    _check(frame, metrics)
    points = frame[list(metrics)].dropna().to_numpy(float)
    if not len(points):
        return 0.0
    worst = np.array([reference[name] for name in metrics], dtype=float)
    return float(moocore.hypervolume(points, ref=worst, maximise=[way == "max" for way in metrics.values()]))


def _check(frame: pd.DataFrame, metrics: Directions) -> None:
    for name, way in metrics.items():
        if name not in frame or not pd.api.types.is_numeric_dtype(frame[name]):
            known = ", ".join(frame.select_dtypes("number").columns)
            raise ValueError(f"metrics: {name!r} is not a numeric column; expected some of {known}")
        if way not in ("max", "min"):
            raise ValueError(f"metrics: {name}: expected max or min, got {way!r}")
