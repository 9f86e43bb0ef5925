"""The metrics that methods are compared on: which direction is better, how to print and resample them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from results.analysis.bootstrap import ONE, Floats, Sample, Statistic, resample
from results.errors import ResultSetError
from results.schema import FAILED, HYPERPARAMETER_PREFIX

if TYPE_CHECKING:
    from results.loading import ResultSet

SHARES: Final = ("test_accuracy", "test_macro_f1", "validation_accuracy", "validation_macro_f1")
"""Metrics from 0 to 1, printed as percentages; higher is better."""

HIGHER_IS_BETTER: Final = (*SHARES, "examples_per_second", "tokens_per_second")

LOWER_IS_BETTER: Final = (
    *("train_loss", "final_train_loss", "validation_loss", "test_loss"),
    *("train_seconds", "evaluation_seconds", "setup_seconds", "test_seconds"),
    *("peak_memory_bytes", "model_bytes", "checkpoint_bytes", "trainable_parameters", "total_parameters"),
)

COMPARABLE: Final = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)

OF_VALIDATION: Final = ("validation_accuracy", "validation_macro_f1", "validation_loss")
"""Metrics with one number per trial: their intervals cover seeds, not validation examples."""

ON_THIS_SPLIT: Final = "on these validation examples: another validation split could say otherwise"


def check_metric(metric: str) -> None:
    """Refuse an unknown metric.

    Raises:
        ValueError: listing the known ones.
    """
    if metric not in COMPARABLE:
        raise ValueError(f"metric: expected one of {', '.join(COMPARABLE)}, got {metric!r}")


def amount(value: float, metric: str) -> str:
    """Format a difference of a metric, with its unit."""
    if metric in SHARES:
        return f"{100 * value:.1f} points"
    if metric.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if metric.endswith("_seconds"):
        return f"{value:,.1f} s"
    if metric.endswith("_per_second"):
        return f"{value:,.0f}/s"
    return f"{value:,.0f}" if metric.endswith("_parameters") else f"{value:.3f}"


def reach(low: float, high: float, metric: str) -> str:
    """Write how far from 0 an interval of a difference goes."""
    if low == high == 0:
        return "the same on every seed"
    text = amount(max(abs(low), abs(high)), metric)
    if re.search("[1-9]", text):
        return f"within {text}"
    return f"within less than {re.sub(r'0(?=[^0-9]*$)', '1', text)}"


def level(value: float, metric: str) -> str:
    """Format a value of a metric, with its unit."""
    return f"{100 * value:.1f}%" if metric in SHARES else amount(value, metric)


def level_with_interval(mean: float, low: float, high: float, metric: str) -> str:
    """Format a metric's mean with its interval, such as ``82.1% [79.5, 84.4]``; NaN bounds are none."""
    if pd.isna(low):
        return level(mean, metric)
    bounds = [re.sub("[^0-9.,-]", "", level(bound, metric)) for bound in (low, high)]
    return f"{level(mean, metric)} [{', '.join(bounds)}]"


def good_trials(trials: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Return the search trials that did not fail and have all the given metrics."""
    return trials[(trials.phase == "search") & ~trials.status.isin(FAILED)].dropna(subset=list(metrics))


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Return each method's best trial of the search so far: by validation accuracy, then loss, then number.

    Running and interrupted trials count with the evaluations they have made.
    """
    order = good_trials(trials, "validation_accuracy").sort_values(
        ["validation_accuracy", "validation_loss", "trial_number"], ascending=[False, True, True]
    )
    return order.drop_duplicates(["experiment", "method"])


def confirmed(results: ResultSet, experiment: str) -> pd.DataFrame:
    """Return an experiment's trials of the confirm phase that were judged on the test split.

    If a search that had ended continues with more trials, one of them may beat the confirmed configuration:
    trials that confirmed any but the best one no longer count.
    """
    tried = _confirming(results, experiment)
    return tried[tried.test_accuracy.notna() & ~tried.status.isin(FAILED)]


def failed_confirms(results: ResultSet, experiment: str) -> dict[str, tuple[int, int]]:
    """Return, of each method of which a confirm trial failed, how many did and how many there are."""
    tried = _confirming(results, experiment)
    by_method = tried.status.isin(FAILED).groupby(tried.method, sort=False)
    return {str(method): (int(failed.sum()), len(failed)) for method, failed in by_method if failed.any()}


def _confirming(results: ResultSet, experiment: str) -> pd.DataFrame:
    """Return the confirm phase's trials of each method's best configuration, whatever became of them."""
    trials = results.trials[results.trials.experiment == experiment]
    tried = trials[trials.phase == "confirm"]
    hyperparameters = [name for name in trials if name.startswith(HYPERPARAMETER_PREFIX)]
    best = best_trials(trials).set_index("method")[hyperparameters]
    found, wanted = tried[hyperparameters].to_numpy(object), best.reindex(tried.method).to_numpy(object)
    is_same = (found == wanted) | (pd.isna(found) & pd.isna(wanted))
    return tried[is_same.all(axis=1) | ~tried.method.isin(best.index)]


def examples_per_test_second(results: ResultSet, experiment: str) -> pd.Series:
    """Return, by confirmed method, the test examples it labelled per second of its evaluations on test."""
    trials = confirmed(results, experiment).dropna(subset=["test_seconds"])
    predictions = results.predictions[results.predictions.experiment == experiment]
    counts = predictions.groupby("trial_id").size().reindex(trials.trial_id).to_numpy(float)
    sums = trials.assign(labelled=counts).groupby("method")[["labelled", "test_seconds"]].sum()
    return sums.labelled / sums.test_seconds.where(sums.test_seconds > 0)


def guessing(results: ResultSet, experiment: str, metric: str = "test_accuracy") -> tuple[str, float] | None:
    """Return the test split's most frequent label and what always answering it scores, if known.

    Arguments:
        results: has the predictions.
        experiment: whose test split.
        metric: ``test_accuracy`` or ``test_macro_f1``.
    """
    predictions = results.predictions[results.predictions.experiment == experiment]
    labels = predictions[predictions.trial_id == predictions.trial_id.min()].label
    if labels.empty:
        return None
    shares = labels.value_counts(normalize=True)
    most, label = float(shares.max()), str(shares.index[shares == shares.max()].min())
    # Only this label's F1 is not 0: its recall is 1, and its precision is its share.
    return label, most if metric == "test_accuracy" else 2 * most / (1 + most) / len(shares)


def why_costs_mislead(trials: pd.DataFrame) -> str:
    """Say in a sentence why an experiment's trials must not be compared by their costs; else nothing."""
    if (trials.trials_per_pack > 1).any():
        return "Trials were trained in packs: do not compare their times and memory."
    devices = trials.device.dropna().unique()
    if len(devices) > 1:
        return f"Trials ran on {' and '.join(sorted(devices))}: do not compare their times and memory."
    if trials.gpus_per_trial.between(0, 1, inclusive="neither").any():
        return "Trials shared GPUs: do not compare their times."
    return ""


def samples(results: ResultSet, experiment: str, metric: str, draws: int, seed: int = 0) -> dict[str, Sample]:
    """Return each confirmed method's values of a metric on the seeds that it was judged on.

    Methods are in the order of the trials table, as in the summary, whichever was confirmed first.
    A metric of the test split is computed from the predictions and resampled over examples; for any other, a
    trial has one number.

    Raises:
        ValueError: if the metric is unknown.
        ResultSetError: if predictions are missing.
    """
    check_metric(metric)
    trials = confirmed(results, experiment)
    if trials.empty:
        return {}
    groups = dict(iter(trials.sort_values("seed").groupby("method")))
    in_order = results.trials[results.trials.experiment == experiment].method.unique()
    methods = {str(method): groups[method] for method in in_order if method in groups}
    if metric not in STATISTICS:
        known = {method: group.dropna(subset=[metric]) for method, group in methods.items()}
        return {
            method: Sample(group[metric].to_numpy(float), seeds=tuple(group.seed))
            for method, group in known.items()
            if len(group)
        }
    predictions = results.predictions[results.predictions.trial_id.isin(trials.trial_id)]
    predictions = predictions[predictions.experiment == experiment]
    _check_whole(predictions, trials.trial_id, experiment)
    statistics = {
        method: STATISTICS[metric](_by_seed(predictions, group.trial_id)) for method, group in methods.items()
    }
    examples = predictions.example_id.nunique()
    found = resample(statistics, examples, draws, seed, ONE if metric in SHARES else ())
    return {method: replace(sample, seeds=tuple(methods[method].seed)) for method, sample in found.items()}


def _check_whole(predictions: pd.DataFrame, trial_ids: pd.Series, experiment: str) -> None:
    """Refuse to compare trials whose predictions are not on the same examples."""
    counts = predictions.groupby("trial_id").size().reindex(trial_ids, fill_value=0)
    if counts.min() < predictions.example_id.nunique() or predictions.empty:
        raise ResultSetError(
            f"predictions.parquet: has {counts.min():,} test examples for {counts.idxmin()} of {experiment}"
            f" and {counts.max():,} for {counts.idxmax()}; expected the same ones for all; restore the table"
        )


def _by_seed(predictions: pd.DataFrame, trial_ids: pd.Series) -> list[pd.DataFrame]:
    """Return each trial's predictions, all in the same order of examples."""
    groups = dict(iter(predictions.groupby("trial_id", sort=False)))
    return [groups[trial_id].sort_values("example_id") for trial_id in trial_ids]


def _weighted(values: Floats) -> Statistic:
    """Return the statistic that averages ``values`` ``[seeds, examples]``."""
    return lambda weights: weights @ values.T


def _accuracy(trials: list[pd.DataFrame]) -> Statistic:
    return _weighted(np.array([(frame.label == frame.prediction).to_numpy(float) for frame in trials]))


def _loss(trials: list[pd.DataFrame]) -> Statistic:
    return _weighted(np.array([frame.loss.to_numpy(float) for frame in trials]))


def _macro_f1(trials: list[pd.DataFrame]) -> Statistic:
    labels = sorted(set().union(*(set(frame.label) | set(frame.prediction) for frame in trials)))
    pairs = [
        np.array([[frame.label == name, frame.prediction == name] for name in labels], dtype=float)
        for frame in trials
    ]

    def statistic(weights: Floats) -> Floats:
        scores = []
        for pair in pairs:  # [labels, 2, examples]
            truth, guess = pair[:, 0], pair[:, 1]
            hits = weights @ (truth * guess).T
            either = weights @ (truth + guess).T
            f1 = np.divide(2 * hits, either, out=np.full_like(hits, np.nan), where=either > 0)
            scores.append(np.nanmean(f1, axis=1))
        return np.stack(scores, axis=1)

    return statistic


STATISTICS: Final[Mapping[str, Callable[[list[pd.DataFrame]], Statistic]]] = {
    "test_accuracy": _accuracy,
    "test_macro_f1": _macro_f1,
    "test_loss": _loss,
}
