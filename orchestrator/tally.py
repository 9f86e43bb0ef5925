"""Numbers of trials by status, kept up to date trial by trial."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from orchestrator.history import TrialHistory
from results.schema import Status


class Tally:
    """Count trials by status, and know which are running.

    Counting anew for every report would make the thousandth trial cost the driver ten times as much as the
    hundredth.

    Arguments:
        trials: known already.
    """

    def __init__(self, trials: Iterable[TrialHistory] = ()) -> None:
        self.trials: dict[str, TrialHistory] = {}  # by id, each in its newest state
        self.running: dict[str, TrialHistory] = {}  # those of them that are running
        self.statuses: dict[tuple[str, str], Counter[Status]] = defaultdict(Counter)  # by method and phase
        for trial in trials:
            self.note(trial)

    def note(self, trial: TrialHistory) -> TrialHistory | None:
        """Record a trial's newest state and return the previous one, if any."""
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
