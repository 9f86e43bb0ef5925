"""Differences between the methods of an experiment, with intervals and verdicts."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from results.analysis.bootstrap import LEVEL, Estimate, estimate
from results.analysis.metrics import LOWER_IS_BETTER, amount, check_metric, confirmed, level, samples

if TYPE_CHECKING:
    from results.loading import ResultSet

DRAWS = 2000

COLUMNS = [
    *("experiment", "metric", "method_a", "method_b", "difference", "low", "high"),
    *("p_value", "p_corrected", "seeds", "examples", "different", "verdict"),
]


def compare(
    results: ResultSet, metric: str = "test_accuracy", draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Compare every pair of an experiment's methods on one metric of the confirm phase.

    Arguments:
        results: each experiment is compared on its own.
        metric: ``test_accuracy``, ``test_macro_f1`` or ``test_loss``, by a paired hierarchical bootstrap
            over seeds and test examples; or a column of trials such as ``train_seconds``, with one
            number per trial, by a paired t-test over seeds.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Returns:
        One row per pair: ``difference`` is a - b, ``low`` and ``high`` are its 95% interval, ``p_value`` is
        two-sided, ``p_corrected`` includes Holm's correction for the experiment's pairs, ``different``
        says whether a difference is shown at the 5% level, ``verdict`` puts all this in words. Empty
        without a confirm phase.

    Raises:
        ValueError: if the metric is unknown.
    """
    check_metric(metric)
    rows: list[dict[str, Any]] = []
    for experiment in results.trials.experiment.unique():
        by_method = samples(results, experiment, metric, draws, seed)
        estimates = {
            (a, b): estimate(by_method[a] - by_method[b], seed) for a, b in combinations(by_method, 2)
        }
        p_values = [found.p_value for found in estimates.values()]
        corrected = multipletests(p_values, method="holm")[1] if p_values else []
        for ((a, b), found), p_corrected in zip(estimates.items(), corrected, strict=True):
            different = bool(p_corrected < 1 - LEVEL and (found.low > 0 or found.high < 0))
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
                    "examples": found.examples,
                    "different": different,
                    "verdict": describe(a, b, found, metric, different),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def describe(a: str, b: str, found: Estimate, metric: str, different: bool) -> str:
    """Describe the difference a - b in words, such as "lora beats full by 1.9 points [0.6, 3.1]"."""
    if not different:
        if found.low != found.low:
            return f"{a} and {b}: no interval from a single seed, so no difference can be shown"
        within = amount(max(abs(found.low), abs(found.high)), metric)
        return f"{a} and {b}: no difference shown (within {within})"
    a_wins = (found.mean < 0) == (metric in LOWER_IS_BETTER)
    winner, loser = (a, b) if a_wins else (b, a)
    low, high = sorted((abs(found.low), abs(found.high)))
    numbers = [amount(value, metric).split()[0] for value in (low, high)]
    only = "; single seed, so chance in training is not accounted for" if found.seeds == 1 else ""
    return f"{winner} beats {loser} by {amount(abs(found.mean), metric)} [{', '.join(numbers)}]{only}"


def verdict(results: ResultSet, experiment: str, metric: str = "test_accuracy") -> str:
    """Say which method of an experiment to use, as far as its confirm phase shows.

    The method with the best mean is compared with all others that were confirmed.
    """
    by_method = samples(results, experiment, metric, DRAWS)
    if not by_method:
        if len(confirmed(results, experiment)):
            return f"Not compared: no {_words(metric)} recorded on seeds that all confirmed methods share."
        return "Not confirmed: without test results, no method can be shown to be better than another."
    sign = 1 if metric in LOWER_IS_BETTER else -1
    order = sorted(by_method, key=lambda method: sign * float(by_method[method].values.mean()))
    best, others = order[0], order[1:]
    mine = estimate(by_method[best])
    most = "lowest" if metric in LOWER_IS_BETTER else "highest"
    has = f"{best} has the {most} {_words(metric)}: {level(mine.mean, metric)}"
    trials = results.trials
    searched = trials[(trials.experiment == experiment) & (trials.phase == "search")].method.unique()
    missing = [str(method) for method in searched if method not in by_method]
    so_far = f" Not confirmed, so not compared: {_list(missing)}." if missing else ""
    if not others:
        return f"{has}.{so_far or ' It is the only method.'}"
    table = compare(results, metric)
    table = table[table.experiment == experiment]
    involved = table[(table.method_a == best) | (table.method_b == best)]
    involved = involved.set_index(involved.method_a.where(involved.method_b == best, involved.method_b))
    beaten = [name for name in others if involved.different[name]]
    reach = involved[["low", "high"]].abs().max(axis=1)
    tied = [
        f"{name} (within {amount(reach[name], metric)})" if reach[name] == reach[name] else name
        for name in others
        if name not in beaten
    ]
    parts = []
    if beaten:
        parts.append(f"beats {_list(beaten)}")
    if tied:
        parts.append(f"shows no difference from {_list(tied)}")
    only = " Single seed: chance in training is not accounted for." if mine.seeds == 1 else ""
    return f"{has}; it {', but '.join(parts)}.{only}{so_far}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
