"""The metrics that methods are compared on: which direction is better, how to print and resample them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from results.analysis.bootstrap import Floats, Sample, Statistic, resample
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


def level(value: float, metric: str) -> str:
    """Format a value of a metric, with its unit."""
    return f"{100 * value:.1f}%" if metric in SHARES else amount(value, metric)


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
    trials = results.trials[results.trials.experiment == experiment]
    judged = trials[(trials.phase == "confirm") & trials.test_accuracy.notna()]
    hyperparameters = [name for name in trials if name.startswith(HYPERPARAMETER_PREFIX)]
    best = best_trials(trials).set_index("method")[hyperparameters]
    found, wanted = judged[hyperparameters].to_numpy(object), best.reindex(judged.method).to_numpy(object)
    is_same = (found == wanted) | (pd.isna(found) & pd.isna(wanted))
    return judged[is_same.all(axis=1) | ~judged.method.isin(best.index)]


def shares_process(trials: pd.DataFrame) -> bool:
    """Say whether any trial shared a process, and so its time and memory, with others."""
    return bool((trials.trials_per_pack.fillna(1) > 1).any())


def samples(results: ResultSet, experiment: str, metric: str, draws: int, seed: int = 0) -> dict[str, Sample]:
    """Return each confirmed method's values of a metric on the seeds that all of them have.

    Methods are in the order of the trials table, as in the summary, whichever was confirmed first.
    A metric of the test split is computed from the predictions and resampled over examples; for any other, a
    trial has one number.

    Raises:
        ValueError: if the metric is unknown.
        ResultSetError: if predictions are missing.
    """
    check_metric(metric)
    trials = confirmed(results, experiment)
    by_method = {method: set(group.seed) for method, group in trials.groupby("method", sort=False)}
    seeds = sorted(set.intersection(*by_method.values())) if by_method else []
    if not seeds:
        return {}
    groups = dict(iter(trials[trials.seed.isin(seeds)].sort_values("seed").groupby("method")))
    in_order = results.trials[results.trials.experiment == experiment].method.unique()
    methods = {str(method): groups[method] for method in in_order if method in groups}
    if metric not in STATISTICS:
        columns = {method: group[metric].to_numpy(float) for method, group in methods.items()}
        return {method: Sample(values) for method, values in columns.items() if not np.isnan(values).any()}
    predictions = results.predictions[results.predictions.trial_id.isin(trials.trial_id)]
    predictions = predictions[predictions.experiment == experiment]
    _check_whole(predictions, trials.trial_id, experiment)
    statistics = {
        method: STATISTICS[metric](_by_seed(predictions, group.trial_id)) for method, group in methods.items()
    }
    examples = predictions.example_id.nunique()
    return resample(statistics, examples, draws, seed)


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
