"""Errors that a user can fix, reported before any work is done."""

from __future__ import annotations

from orchestrator.secrets import redact
from results.errors import one_line


class ExperimentError(ValueError):
    """Everything that is wrong with an experiment, one line each.

    A line says where (file and key), what was found, what was expected and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = [one_line(redact(problem)) for problem in problems]
        super().__init__("\n".join(self.problems))
