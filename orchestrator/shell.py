"""The part of a trial that Tune runs, whichever processes train it; it imports nothing that trains."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from orchestrator.assignment import Assignment
from orchestrator.reports import DAMAGE, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
from results.evaluation import Evaluation
from results.hyperparameters import describe_hyperparameters
from results.schema import Status


class ProcessDiedError(RuntimeError):
    """A process of a trial is gone; another one may continue from the trial's last state."""


@dataclass(frozen=True)
class Start:
    """What a trial starts from."""

    best_accuracy: float  # on validation, of the state it continues from; 0 if there is none
    damage: str | None  # what is wrong with a state that it cannot continue from


@dataclass(frozen=True)
class Failure:
    """How a trial failed whose process can train the next one."""

    status: Status  # one of FAILED
    error: str


class Driven(Protocol):
    """A trial's process, or a stand-in that is driven like one."""

    def begin(self, assignment: Assignment) -> Start:
        """Begin a trial, or continue it from its last state."""

    def advance(self) -> Evaluation | Failure:
        """Save the trial's state, once it has one, and train until the next evaluation.

        Raises:
            Exception: if the trial may succeed in another process.
        """

    def close(self) -> None:
        """Let go of the trial."""


class TrialShell(tune.Trainable):
    """Drive one trial after another, one evaluation per step.

    A trial that fails ends with a result that carries its status and error, and the process stays warm for
    the next one. If a process dies or cannot write, Tune starts another one, which continues from the trial's
    last state.

    While a trial trains, the process is called ``ray::lora-003 rank 8, lr 0.0005`` in the dashboard's list of
    a node's workers, in ``ps`` and in ``top``. Its lines in the log begin with the trial's id. Ray records an
    actor's ``repr`` only once, when it is created, so that names the worker's first trial.
    """

    _process: Driven
    _due: Assignment | None = None  # the trial, until it has begun

    def _open(self, config: dict[str, Any], process: Driven) -> None:
        """Take the first trial."""
        self._process = process
        self._take(config)
        self._name = f"first trial: {self._title}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._take(new_config)
        return True

    def cleanup(self) -> None:
        self._process.close()

    def __repr__(self) -> str:
        return self._name

    def _take(self, config: dict[str, Any]) -> None:
        """Take a trial, which begins in its first step: Tune retries what fails there, and times it."""
        assignment = self._due = Assignment.from_config(config)
        self._title = f"{assignment.trial_id} {describe_hyperparameters(assignment.hyperparameters)}"
        for stream in (sys.stdout, sys.stderr):
            print(f"{LOG_PREFIX_ACTOR_NAME}{assignment.trial_id}", file=stream, flush=True)

    def _advance(self) -> Evaluation | Failure:
        return self._process.advance()

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self._title}")
        damage = None
        if self._due:
            start, self._due = self._process.begin(self._due), None
            self._best_accuracy, damage = start.best_accuracy, start.damage
        point = self._advance()
        if isinstance(point, Failure):
            self._process.close()
            return {STATUS: point.status, ERROR: point.error, "done": True}
        self._best_accuracy = max(self._best_accuracy, point.validation_accuracy)
        return {
            POINT: point,
            **({DAMAGE: damage} if damage else {}),
            EVALUATION: point.evaluation,
            OBJECTIVE: self._best_accuracy,
            "done": point.is_last,
        }
