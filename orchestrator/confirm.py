"""The confirm phase: each method's best configuration on fresh seeds, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.experiment import Assignment
from orchestrator.rows import TrialHistory


def confirm_trials(searched: Sequence[TrialHistory], method: str, seeds: int) -> list[Assignment]:
    """Say which trials confirm the search of a method. Methods share their seeds.

    Arguments:
        searched: trials of the search, of any method.
        method: one of which no trial ended well has nothing to confirm.
        seeds: trials.
    """
    ended = [trial for trial in searched if trial.spec.method == method and trial.objective is not None]
    if not ended:
        return []
    best = min(ended, key=lambda trial: trial.rank).assignment.hyperparameters
    return [Assignment(method, seed, best, "confirm") for seed in range(seeds)]
