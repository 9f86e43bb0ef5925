"""A budget per method: what its trials may spend in the search phase, in training seconds or examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from orchestrator.history import TrialHistory
from orchestrator.reports import POINT
from orchestrator.settings import BudgetSettings
from results.evaluation import Evaluation


class MethodBudgets:
    """Accounts for what each method has spent; all methods may spend the same.

    Arguments:
        budget: what is counted, and how much of it a method may spend.
    """

    def __init__(self, budget: BudgetSettings) -> None:
        assert budget.unit is not None
        self._unit: str = budget.unit
        self._limit = budget.limit
        self._by_trial: dict[tuple[str, str], float] = defaultdict(float)
        self._spent: dict[str, float] = defaultdict(float)

    def note(self, method: str, trial: str, report: Mapping[str, Any]) -> None:
        """Record what a trial of a method has spent so far."""
        if POINT in report:
            self._note(method, trial, report[POINT])

    def replay(self, trial: TrialHistory) -> None:
        """Record what a trial of an interrupted run had spent."""
        if trial.curve:
            self._note(trial.spec.method, trial.spec.trial_id, trial.curve[-1])

    def is_spent(self, method: str) -> bool:
        """Say whether a method has spent everything."""
        return self._spent[method] >= self._limit

    def _note(self, method: str, trial: str, point: Evaluation) -> None:
        # Summing over all trials for every report would cost more with every trial.
        spent = getattr(point, self._unit)
        self._spent[method] += spent - self._by_trial[method, trial]
        self._by_trial[method, trial] = spent
