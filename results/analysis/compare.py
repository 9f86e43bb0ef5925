"""Differences between the methods of an experiment, with intervals and verdicts."""

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
    confirmed,
    failed_confirms,
    level,
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
    failures = "".join(f"; {name}: {_failed(*failed[name])}" for name in (a, b) if name in failed)
    if not different:
        return f"{a} and {b}: {_tie(found.seeds, found.low, found.high, metric)}{failures}"
    winner, loser = (a, b) if _is_first_better(found.mean, metric) else (b, a)
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


def _failed(failed: int, trials: int) -> str:
    return f"{failed} of {trials} confirm trials failed"


def _is_first_better(difference: float, metric: str) -> bool:
    return (difference < 0) == (metric in LOWER_IS_BETTER)


def verdict(results: ResultSet, experiment: str, metric: str = "test_accuracy") -> str:
    """Say which method of an experiment to use, as far as its confirm phase shows.

    The method with the best mean is compared with all others that were confirmed. Means are over the confirm
    trials that did not fail; failed ones are counted in words.
    """
    by_method = samples(results, experiment, metric, DRAWS)
    failed = failed_confirms(results, experiment)
    if not by_method:
        return (
            f"Not compared: no {_words(metric)} recorded for any confirmed method."
            if len(confirmed(results, experiment))
            else "Not confirmed: without test results, no method can be shown to be better than another."
        ) + _list_failed(failed)
    sign = 1 if metric in LOWER_IS_BETTER else -1
    order = sorted(by_method, key=lambda method: sign * float(by_method[method].values.mean()))
    best, others = order[0], order[1:]
    mine = estimate(by_method[best])
    most = "lowest" if metric in LOWER_IS_BETTER else "highest"
    has = f"{best} has the {most} {_words(metric)}: {level(mine.mean, metric)}"
    if best in failed:
        count, tried = failed.pop(best)
        has += f", but {count} of its {tried} confirm trials failed"
    trials = results.trials
    searched = trials[(trials.experiment == experiment) & (trials.phase == "search")].method.unique()
    missing = [str(method) for method in searched if method not in by_method]
    so_far = _against_guessing(results, experiment, by_method) if metric == "test_accuracy" else ""
    so_far += f" Not confirmed, so not compared: {_list(missing)}." if missing else ""
    so_far += _list_failed(failed)
    if not others:
        return f"{has}.{so_far if missing else ' It is the only method.' + so_far}"
    table = compare(results.of(experiment), metric)
    involved = table[(table.method_a == best) | (table.method_b == best)]
    involved = involved.set_index(involved.method_a.where(involved.method_b == best, involved.method_b))
    only = " A single seed shows no difference: chance in training is not accounted for."
    only = only if involved.seeds.max() == 1 else ""
    split = f" {ON_THIS_SPLIT.capitalize()}." if metric in OF_VALIDATION else ""
    return f"{has}; as tuned here, it {_against(best, involved.loc[others], metric)}.{only}{split}{so_far}"


def _against_guessing(results: ResultSet, experiment: str, by_method: Mapping[str, Sample]) -> str:
    """Say what the most frequent label as the only answer scores on test, and who may be no better."""
    predictions = results.predictions[results.predictions.experiment == experiment]
    labels = predictions[predictions.trial_id == predictions.trial_id.iloc[0]].label
    share = float(labels.value_counts(normalize=True).iloc[0])
    said = f" Always answering {labels.mode()[0]!r} scores {level(share, 'test_accuracy')}"
    doubtful = [method for method, sample in by_method.items() if not estimate(sample).low > share]
    return said + (f"; {_list(doubtful)} may be no better." if doubtful else ".")


def _against(best: str, pairs: pd.DataFrame, metric: str) -> str:
    """Say how the best method does against each other, which ``pairs`` has by name."""
    beaten, beating, tied = [], [], []
    for name, pair in pairs.iterrows():
        if not pair.different:
            tied.append(f"{name}{_reach(pair, pairs.seeds.max())}")
        elif _is_first_better(pair.difference, metric) == (pair.method_a == best):
            beaten.append(str(name))
        else:  # on the seeds of both; on all of its own it is worse
            beating.append(str(name))
    parts = []
    if beaten:
        parts.append(f"beats {_list(beaten)}")
    if tied:
        parts.append(f"shows no difference from {_list(tied)}")
    if beating:
        parts.append(f"is beaten on their common seeds by {_list(beating)}")
    return ", but ".join(parts)


def _reach(pair: pd.Series, most_seeds: int) -> str:
    """Say in brackets how large a difference may be that is not shown, or why that is unknown."""
    if pair.seeds > 1:
        return f" ({reach(pair.low, pair.high, pair.metric)})"
    return "" if most_seeds == 1 else f" ({'one' if pair.seeds else 'no'} seed in common)"


def _list_failed(failed: Mapping[str, tuple[int, int]]) -> str:
    return "".join(f" {method}: {_failed(*counts)}." for method, counts in failed.items())


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
