"""What Tune runs of a trial, whichever processes train it; it imports nothing that trains."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from orchestrator.assignment import Assignment
from orchestrator.reports import DAMAGE, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
from results.hyperparameters import describe_hyperparameters
from results.schema import Status
from trainables.evaluation import Evaluation


class ProcessDiedError(RuntimeError):
    """A process of a trial is gone; another one may go on from the trial's last state."""


@dataclass(frozen=True)
class Start:
    """Where a trial begins."""

    best_accuracy: float  # on validation, of the state it goes on from
    damage: str | None  # what is wrong with a state that it cannot go on from


@dataclass(frozen=True)
class Failure:
    """How a trial failed, its process being fit for the next one."""

    status: Status  # one of FAILED
    error: str


class Driven(Protocol):
    """A trial's process, or what is driven like one."""

    def begin(self, assignment: Assignment) -> Start:
        """Begin a trial, or go on with it from its last state."""

    def advance(self) -> Evaluation | Failure:
        """Save the trial's state, once it has one, and train until the next evaluation.

        Raises:
            Exception: if another process may have more luck.
        """

    def close(self) -> None:
        """Let go of the trial."""


class TrialShell(tune.Trainable):
    """Drive one trial after another, one evaluation per step.

    A trial that fails ends with a result that carries its status and error, and the process stays warm for
    the next one. Where a process dies or cannot write, Tune starts another one, which goes on from the
    trial's last state.

    While it trains, its process is called ``ray::lora-003 rank 8, lr 0.0005``: the dashboard's list of a
    node's workers, ``ps`` and ``top`` show that. Its lines in the log begin with the trial's id. Ray takes
    down an actor's ``repr`` once, when it is made, so that says which trial was the worker's first.
    """

    _process: Driven

    def _open(self, config: dict[str, Any], process: Driven) -> None:
        """Begin with the first trial."""
        self._process = process
        self._start(config)
        self._name = f"first trial: {self._title}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        self._process.close()

    def __repr__(self) -> str:
        return self._name

    def _start(self, config: dict[str, Any]) -> None:
        assignment = Assignment.from_config(config)
        self._title = f"{assignment.trial_id} {describe_hyperparameters(assignment.hyperparameters)}"
        for stream in (sys.stdout, sys.stderr):
            print(f"{LOG_PREFIX_ACTOR_NAME}{assignment.trial_id}", file=stream, flush=True)
        start = self._process.begin(assignment)
        self._damage = start.damage
        self._best_accuracy = start.best_accuracy

    def _advance(self) -> Evaluation | Failure:
        return self._process.advance()

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self._title}")
        point = self._advance()
        if isinstance(point, Failure):
            self._process.close()
            return {STATUS: point.status, ERROR: point.error, "done": True}
        self._best_accuracy = max(self._best_accuracy, point.validation_accuracy)
        damage, self._damage = self._damage, None
        return {
            POINT: point,
            **({DAMAGE: damage} if damage else {}),
            EVALUATION: point.evaluation,
            OBJECTIVE: self._best_accuracy,
            "done": point.is_last,
        }
