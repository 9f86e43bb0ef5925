"""The identity of a trial within its experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Phase = Literal["search", "confirm"]

KEY = "assignment"
"""The only key of a Tune trial's configuration."""


@dataclass(frozen=True)
class Assignment:
    """Everything about a trial that its experiment does not settle."""

    method: str
    number: int  # n-th trial of its method in its phase, from 0
    hyperparameters: Mapping[str, Any]  # as Optuna suggested them
    phase: Phase = "search"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read an assignment from the configuration of a Tune trial."""
        return cls(**config[KEY])

    def to_config(self) -> dict[str, Any]:
        """Return the configuration of a Tune trial, which carries the assignment to a worker."""
        return {KEY: asdict(self)}

    @property
    def trial_id(self) -> str:
        """The trial's id: unique in the experiment, and a plain file name."""
        return (
            f"{self.method}-{self.number:03d}"
            if self.phase == "search"
            else f"{self.method}-seed{self.number}"
        )
