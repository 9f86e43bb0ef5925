"""The Tune trainable: feeds a trial its inputs, reports what it yields."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef, tune
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import Prepared
from orchestrator.reports import ASSIGNMENT, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
from results.show import describe_hyperparameters
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.trial import Evaluation, failure_status, run_trial


@dataclass(frozen=True)
class Inputs:
    """What workers read, in the object store once: they share the memory."""

    experiment: Experiment
    directory: Path  # of the run
    base: ObjectRef[BaseModel]
    data: ObjectRef[TokenizedData]
    test: ObjectRef[TokenizedSplit]


def share(experiment: Experiment, prepared: Prepared, directory: Path) -> Inputs:
    """Put what was prepared into the object store."""
    return Inputs(
        experiment, directory, ray.put(prepared.base), ray.put(prepared.data), ray.put(prepared.test)
    )


class TrialWorker(tune.Trainable):
    """Drive one trial after another in one process, one evaluation per step.

    A trial that raises ends with a result that carries its status and error, and the process stays
    warm for the next one; only a process that dies is left to Tune.

    While it trains, its process is called ``ray::lora-003 rank 8, lr 0.0005``: the dashboard's list of a
    node's workers, ``ps`` and ``top`` show that. Its lines in the log begin with the trial's id. Ray takes
    down an actor's ``repr`` once, when it is made, so that says which trial was the worker's first.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], inputs: Inputs
    ) -> None:
        self._inputs = inputs
        self._base, self._data = ray.get(inputs.base), ray.get(inputs.data)
        self._start(config)
        self._name = f"first trial: {self._title}"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        self._curve: Iterator[Evaluation] = iter(())

    def __repr__(self) -> str:
        return self._name

    def _start(self, config: dict[str, Any]) -> None:
        assignment = Assignment(**config[ASSIGNMENT])
        self._title = f"{assignment.trial_id} {describe_hyperparameters(assignment.hyperparameters)}"
        self._best_accuracy = 0.0
        self._curve = self._run(assignment)

    def _run(self, assignment: Assignment) -> Iterator[Evaluation]:
        for stream in (sys.stdout, sys.stderr):
            print(f"{LOG_PREFIX_ACTOR_NAME}{assignment.trial_id}", file=stream, flush=True)
        spec = self._inputs.experiment.trial_spec(assignment)
        # The search never sees the test split.
        test = ray.get(self._inputs.test) if assignment.phase == "confirm" else None
        checkpoint = self._inputs.directory / "checkpoints" / spec.trial_id
        yield from run_trial(spec, self._data, self._base, checkpoint, test=test)

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self._title}")
        try:
            point = next(self._curve)
        except Exception as error:
            self._curve = iter(())
            print(traceback.format_exc(), flush=True)
            text = f"{type(error).__name__}: {error}"
            return {STATUS: failure_status(error), ERROR: text, "done": True}
        self._best_accuracy = max(self._best_accuracy, point.validation_accuracy)
        return {
            POINT: point,
            EVALUATION: point.evaluation,
            OBJECTIVE: self._best_accuracy,
            "done": point.is_last,
        }
