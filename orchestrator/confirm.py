"""The confirm phase: each method's best configuration on fresh seeds, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.experiment import Assignment
from orchestrator.history import TrialHistory, best_of


def confirm_trials(searched: Sequence[TrialHistory], method: str, seeds: int) -> list[Assignment]:
    """Return the trials of a method's confirm phase. All methods share their seeds.

    Arguments:
        searched: trials of the search phase, of any method.
        method: has no confirm trials if none of its trials ended well.
        seeds: number of trials, each with a seed of its own.
    """
    best = best_of(trial for trial in searched if trial.spec.method == method)
    if not best:
        return []
    hyperparameters = best[0].assignment.hyperparameters
    return [Assignment(method, seed, hyperparameters, "confirm") for seed in range(seeds)]
