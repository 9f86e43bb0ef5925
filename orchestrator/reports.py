"""The keys of a trial's reports to Tune."""

from __future__ import annotations

from typing import Final

POINT: Final = "point"
"""The ``Evaluation``."""

EVALUATION: Final = "evaluation"
"""The evaluation's number, which ASHA's rungs are measured in."""

DAMAGE: Final = "damage"
"""In a trial's first report: what is wrong with the state that it should have continued from."""

OBJECTIVE: Final = "objective"
"""Best validation accuracy so far, which studies maximize and ASHA compares."""

WORST: Final = 0.0
"""What a study is told as the objective of a trial that diverged or ran out of memory.

Optuna's samplers ignore trials told as failed, and would suggest what fails again and again.
"""

STATUS: Final = "status"
"""In the last report of a trial that failed: its status."""

ERROR: Final = "error"
"""In the last report of a trial that failed: the error's text."""


def learned(status: str | None, objective: float | None) -> float | None:
    """Return what a study learns from a trial: None if the program failed, not the trial.

    Arguments:
        status: of a trial that failed; its hyperparameters cause ``diverged`` and ``out_of_memory``.
        objective: of a trial that ended well.
    """
    return WORST if status in ("diverged", "out_of_memory") else objective
