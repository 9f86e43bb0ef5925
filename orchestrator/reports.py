"""What passes between Tune and a worker: the keys of a trial's configuration and of its reports."""

from __future__ import annotations

from typing import Final

ASSIGNMENT: Final = "assignment"
"""In a configuration: which trial it is, the fields of an ``Assignment``."""

POINT: Final = "point"
"""In a report: the ``Evaluation``."""

EVALUATION: Final = "evaluation"
"""In a report: the evaluation's number, which ASHA's rungs are measured in."""

DAMAGE: Final = "damage"
"""In a trial's first report: what is wrong with the state that it should have gone on from."""

OBJECTIVE: Final = "objective"
"""In a report: best validation accuracy so far, which studies maximize and ASHA compares."""

STATUS: Final = "status"
"""In the last report of a trial that failed: how."""

ERROR: Final = "error"
"""In the last report of a trial that failed: the error's text."""
