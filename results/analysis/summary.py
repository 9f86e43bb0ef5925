"""The table across methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from results.analysis.bootstrap import estimate
from results.analysis.metrics import best_trials, confirmed, failed_confirms, samples
from results.schema import FAILED, HYPERPARAMETER_PREFIX

if TYPE_CHECKING:
    from results.loading import ResultSet

DRAWS = 1000

COSTS = [
    *("trainable_parameters", "model_bytes", "checkpoint_bytes", "peak_memory_bytes"),
    *("train_seconds", "examples_per_second"),
]


def summary(results: ResultSet) -> pd.DataFrame:
    """Return one row per experiment and method.

    Returns:
        ``trials`` and ``failed`` count search trials; ``best_trial``, ``validation_accuracy`` and ``hp_*``
        describe the best of them. ``test_accuracy``, ``test_accuracy_low``, ``test_accuracy_high`` (95%
        interval; with one seed over test examples alone) and ``test_macro_f1`` are means over the confirm
        phase's ``seeds``, null without a confirm phase; ``confirm_failed`` of its trials failed. The costs
        are those of one trial with the best configuration: means over the confirm phase, or without one the
        best trial's own. ``search_train_seconds`` is the search's total.
    """
    rows = []
    for experiment in results.trials.experiment.unique():
        accuracies = samples(results, experiment, "test_accuracy", DRAWS)
        failed = failed_confirms(results, experiment)
        for method in results.trials[results.trials.experiment == experiment].method.unique():
            row = _row(results, experiment, method)
            row["confirm_failed"] = failed.get(method, (0, 0))[0]
            if method in accuracies:
                found = estimate(accuracies[method])
                row |= {
                    "seeds": found.seeds,
                    "test_accuracy": found.mean,
                    "test_accuracy_low": found.low,
                    "test_accuracy_high": found.high,
                }
            rows.append(row)
    leading = ["experiment", "method", "kind", "trials", "failed", "best_trial", "validation_accuracy"]
    test = [
        "seeds",
        "confirm_failed",
        "test_accuracy",
        "test_accuracy_low",
        "test_accuracy_high",
        "test_macro_f1",
    ]
    hyperparameters = [name for name in results.trials if name.startswith(HYPERPARAMETER_PREFIX)]
    columns = [*leading, *test, *COSTS, "search_train_seconds", *hyperparameters]
    return pd.DataFrame(rows, columns=columns).convert_dtypes()


def _row(results: ResultSet, experiment: str, method: str) -> dict[str, Any]:
    trials = results.trials
    mine = trials[(trials.experiment == experiment) & (trials.method == method)]
    search = mine[mine.phase == "search"]
    row: dict[str, Any] = {
        "experiment": experiment,
        "method": method,
        "kind": mine.kind.iloc[0],
        "trials": len(search),
        "failed": int(search.status.isin(FAILED).sum()),
        "search_train_seconds": search.train_seconds.sum(),
    }
    best = best_trials(mine)
    if len(best):
        hyperparameters = [name for name in mine if name.startswith(HYPERPARAMETER_PREFIX)]
        taken = best.iloc[0][["validation_accuracy", *hyperparameters, *COSTS]].to_dict()
        row |= {"best_trial": best.trial_id.iloc[0], **taken}
    judged = confirmed(results, experiment)
    judged = judged[judged.method == method]
    if len(judged):
        row |= judged[["test_macro_f1", *COSTS]].mean().to_dict()
    return row
