"""Which trial it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Phase = Literal["search", "confirm"]

KEY = "assignment"
"""Of a Tune trial's configuration, which holds nothing else."""


@dataclass(frozen=True)
class Assignment:
    """Which trial of an experiment: everything about it that is not settled by the experiment."""

    method: str
    number: int  # n-th trial of its method in its phase, from 0
    hyperparameters: Mapping[str, Any]  # as Optuna suggested them
    phase: Phase = "search"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read it from the configuration of a Tune trial."""
        return cls(**config[KEY])

    def to_config(self) -> dict[str, Any]:
        """Return the configuration of the Tune trial that carries it to a worker."""
        return {KEY: asdict(self)}

    @property
    def trial_id(self) -> str:
        """Unique in the experiment, and a plain file name."""
        return (
            f"{self.method}-{self.number:03d}"
            if self.phase == "search"
            else f"{self.method}-seed{self.number}"
        )
