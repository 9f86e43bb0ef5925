"""What is known of a trial so far, from its reports or its journal record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Final

from orchestrator.experiment import Assignment
from orchestrator.reports import learned
from results.evaluation import Evaluation, TestOutcome
from results.schema import ENDED_WELL, Status
from trainables.setup import TrialSpec


@dataclass(frozen=True)
class TrialHistory:
    """All that is known of one trial so far."""

    assignment: Assignment
    spec: TrialSpec
    status: Status = "running"
    error: str | None = None
    curve: Sequence[Evaluation] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    node: str | None = None
    keeps_checkpoint: bool = True
    retries: int = 0
    lost_seconds: float = 0.0

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation so far; None before the first one."""
        return next((point for point in reversed(self.curve) if point.is_best), None)

    def starts_after(self, time: float) -> bool:
        """Say whether the trial started at a POSIX time or later."""
        return self.started_at is not None and self.started_at.timestamp() >= time

    @property
    def test(self) -> TestOutcome | None:
        """The outcome on the test split after a confirm trial's last evaluation; else None."""
        return self.curve[-1].test if self.curve else None

    @property
    def best_so_far(self) -> list[float]:
        """Best validation accuracy at each evaluation: what studies and brackets were told."""
        return list(accumulate((point.validation_accuracy for point in self.curve), max))

    @property
    def objective(self) -> float | None:
        """Best validation accuracy of a trial that ended well; None for any other."""
        return self.best_so_far[-1] if self.curve and self.status in ENDED_WELL else None

    @property
    def learned(self) -> float | None:
        """What the study learns from the ended trial; None if the program failed, not the trial."""
        return learned(self.status, self.objective)

    @property
    def standing(self) -> tuple[float, float, int]:
        """Sort key: better trials first; accuracy, then loss, then the earlier trial."""
        if self.best is None:
            return (0.0, float("inf"), self.assignment.number)
        return (-self.best.validation_accuracy, self.best.validation_loss, self.assignment.number)


@dataclass(frozen=True)
class Earlier:
    """The trials of a run that an earlier process began."""

    finished: Sequence[TrialHistory] = ()  # kept as they are
    unfinished: Sequence[TrialHistory] = ()  # continue from the last evaluation of their curves


NOTHING: Final = Earlier()
"""The earlier trials of a new run: none."""


def best_of(trials: Iterable[TrialHistory], count: int = 1) -> list[TrialHistory]:
    """Return the ``count`` best of the trials that ended well, the best first."""
    worthy = [trial for trial in trials if trial.objective is not None]
    return sorted(worthy, key=lambda trial: trial.standing)[:count]
