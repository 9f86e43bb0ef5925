"""The confirm phase: each method's best configuration on fresh seeds, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.experiment import Assignment
from orchestrator.history import TrialHistory, best_of


def confirm_trials(searched: Sequence[TrialHistory], method: str, seeds: int) -> list[Assignment]:
    """Say which trials confirm the search of a method. Methods share their seeds.

    Arguments:
        searched: trials of the search, of any method.
        method: one of which no trial ended well has nothing to confirm.
        seeds: trials.
    """
    best = best_of(trial for trial in searched if trial.spec.method == method)
    if not best:
        return []
    hyperparameters = best[0].assignment.hyperparameters
    return [Assignment(method, seed, hyperparameters, "confirm") for seed in range(seeds)]
