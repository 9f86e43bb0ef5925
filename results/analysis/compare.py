"""Differences between the methods of an experiment, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from results.analysis.bootstrap import LEVEL, Estimate, Sample, estimate
from results.analysis.metrics import (
    LOWER_IS_BETTER,
    OF_VALIDATION,
    ON_THIS_SPLIT,
    amount,
    check_metric,
    failed_confirms,
    reach,
    samples,
)

if TYPE_CHECKING:
    from results.loading import ResultSet

DRAWS = 2000

COLUMNS = [
    *("experiment", "metric", "method_a", "method_b", "difference", "low", "high"),
    *("p_value", "p_corrected", "seeds", "failed_a", "failed_b", "examples", "different", "verdict"),
]


def compare(
    results: ResultSet, metric: str = "test_accuracy", draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Compare every pair of an experiment's methods on one metric of the confirm phase.

    A pair is compared on the seeds on which both methods were judged; one such seed shows no difference,
    since it does not say how much seeds vary. What is compared is each method as tuned by this search: the
    luck of the search, which could have found another configuration, is not in the interval. Neither is, for
    metrics of the validation split, that its examples could have been others.

    Arguments:
        results: each experiment is compared on its own.
        metric: ``test_accuracy``, ``test_macro_f1`` or ``test_loss``, over seeds and test examples
            (:mod:`results.analysis.bootstrap`); or a column of trials such as ``train_seconds``, with one
            number per trial, by a paired t-test over seeds.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Returns:
        One row per pair: ``difference`` is a - b, ``low`` and ``high`` are its 95% interval, ``p_value`` is
        two-sided, ``p_corrected`` includes Holm's correction for the experiment's pairs, ``different``
        says whether a difference is shown at the 5% level, ``verdict`` puts all this in words. ``seeds``
        counts those on which both were judged, ``failed_a`` and ``failed_b`` the confirm trials that failed
        and are not in the difference. Empty without a confirm phase.

    Raises:
        ValueError: if the metric is unknown.
    """
    check_metric(metric)
    rows: list[dict[str, Any]] = []
    for experiment in results.trials.experiment.unique():
        by_method = samples(results, experiment, metric, draws, seed)
        failed = failed_confirms(results, experiment)
        estimates = {(a, b): _difference(by_method[a], by_method[b]) for a, b in combinations(by_method, 2)}
        p_values = {pair: found.p_value for pair, found in estimates.items() if found.seeds > 1}
        holm = multipletests(list(p_values.values()), method="holm")[1] if p_values else []
        corrected = dict(zip(p_values, holm, strict=True))
        for (a, b), found in estimates.items():
            p_corrected = corrected.get((a, b), float("nan"))
            different = bool(p_corrected < 1 - LEVEL)
            rows.append(
                {
                    "experiment": experiment,
                    "metric": metric,
                    "method_a": a,
                    "method_b": b,
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p_value": found.p_value,
                    "p_corrected": p_corrected,
                    "seeds": found.seeds,
                    "failed_a": failed.get(a, (0, 0))[0],
                    "failed_b": failed.get(b, (0, 0))[0],
                    "examples": found.examples,
                    "different": different,
                    "verdict": describe(a, b, found, metric, different, failed),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _difference(a: Sample, b: Sample) -> Estimate:
    """Estimate a - b; with fewer than two seeds only the difference itself is known."""
    found = estimate(a - b)
    nan = float("nan")
    return found if found.seeds > 1 else replace(found, low=nan, high=nan, p_value=nan)


def describe(
    a: str, b: str, found: Estimate, metric: str, different: bool, failed: Mapping[str, tuple[int, int]]
) -> str:
    """Describe the difference a - b in words, such as "lora beats full by 1.9 points [0.6, 3.1]"."""
    failures = "".join(f"; {name}: {count_failed(*failed[name])}" for name in (a, b) if name in failed)
    if not different:
        return f"{a} and {b}: {_tie(found.seeds, found.low, found.high, metric)}{failures}"
    winner, loser = (a, b) if is_first_better(found.mean, metric) else (b, a)
    low, high = sorted((abs(found.low), abs(found.high)))
    numbers = [amount(value, metric).split()[0] for value in (low, high)]
    split = f", {ON_THIS_SPLIT}" if metric in OF_VALIDATION else ""
    return (
        f"{winner} beats {loser} by {amount(abs(found.mean), metric)} [{', '.join(numbers)}]{split}{failures}"
    )


def _tie(seeds: int, low: float, high: float, metric: str) -> str:
    if seeds == 0:
        return "not compared, no seed in common"
    if seeds == 1:
        return "no interval from a single seed, so no difference can be shown"
    return f"no difference shown ({reach(low, high, metric)})"


def count_failed(failed: int, trials: int) -> str:
    """Say how many of a method's confirm trials failed."""
    return f"{failed} of {trials} confirm trials failed"


def is_first_better(difference: float, metric: str) -> bool:
    """Say whether a is better than b, of which the difference is a - b."""
    return (difference < 0) == (metric in LOWER_IS_BETTER)
