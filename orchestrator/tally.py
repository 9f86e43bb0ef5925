"""How many trials there are of each kind, kept up to date trial by trial."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from orchestrator.history import TrialHistory
from results.schema import Status


class Tally:
    """Count trials by status, and know which of them run.

    Adding it all up anew for every report would make the thousandth trial cost the driver ten times what the
    hundredth does.

    Arguments:
        trials: known already.
    """

    def __init__(self, trials: Iterable[TrialHistory] = ()) -> None:
        self.trials: dict[str, TrialHistory] = {}  # by id, each in its newest state
        self.running: dict[str, TrialHistory] = {}  # those of them that run
        self.statuses: dict[tuple[str, str], Counter[Status]] = defaultdict(Counter)  # by method and phase
        for trial in trials:
            self.note(trial)

    def note(self, trial: TrialHistory) -> TrialHistory | None:
        """Take in a trial's newest state and return the one before."""
        key = trial.spec.trial_id
        before, self.trials[key] = self.trials.get(key), trial
        if trial.status == "running":
            self.running[key] = trial
        else:
            self.running.pop(key, None)
        statuses = self.statuses[trial.spec.method, trial.assignment.phase]
        if before:
            statuses[before.status] -= 1
        statuses[trial.status] += 1
        return before
