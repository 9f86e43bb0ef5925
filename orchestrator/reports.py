"""What a worker reports to Tune: the keys of a trial's reports."""

from __future__ import annotations

from typing import Final

POINT: Final = "point"
"""The ``Evaluation``."""

EVALUATION: Final = "evaluation"
"""The evaluation's number, which ASHA's rungs are measured in."""

DAMAGE: Final = "damage"
"""In a trial's first report: what is wrong with the state that it should have gone on from."""

OBJECTIVE: Final = "objective"
"""Best validation accuracy so far, which studies maximize and ASHA compares."""

WORST: Final = 0.0
"""The objective of a trial that diverged or ran out of memory, to its study: this is not the place to look.

Optuna's samplers leave failed trials out, and would suggest what fails again and again.
"""

STATUS: Final = "status"
"""In the last report of a trial that failed: how."""

ERROR: Final = "error"
"""In the last report of a trial that failed: the error's text."""


def learned(status: str | None, objective: float | None) -> float | None:
    """Return what a study learns of a trial: nothing where the program failed, not the trial.

    Arguments:
        status: of a trial that failed: ``diverged`` and ``out_of_memory`` are its hyperparameters' doing.
        objective: of a trial that ended well.
    """
    return WORST if status in ("diverged", "out_of_memory") else objective
