"""Which trial it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["search", "confirm"]


@dataclass(frozen=True)
class Assignment:
    """Which trial of an experiment: everything about it that is not settled by the experiment."""

    method: str
    number: int  # n-th trial of its method in its phase, from 0
    hyperparameters: Mapping[str, Any]  # as Optuna suggested them
    phase: Phase = "search"

    @property
    def trial_id(self) -> str:
        """Unique in the experiment, and a plain file name."""
        return (
            f"{self.method}-{self.number:03d}"
            if self.phase == "search"
            else f"{self.method}-seed{self.number}"
        )
