"""The Tune trainable: feeds a trial its inputs, reports what it yields."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef, tune

from orchestrator.cluster import check_directory
from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import Prepared
from orchestrator.reports import ASSIGNMENT, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
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

    @property
    def trainable(self) -> type[tune.Trainable]:
        """The class of the workers that read them."""
        return tune.with_parameters(TrialWorker, inputs=self)


def share(experiment: Experiment, prepared: Prepared, directory: Path) -> Inputs:
    """Put what was prepared into the object store."""
    return Inputs(
        experiment, directory, ray.put(prepared.base), ray.put(prepared.data), ray.put(prepared.test)
    )


class TrialWorker(tune.Trainable):
    """Drive one trial after another in one process, one evaluation per step.

    A trial that raises ends with a result that carries its status and error, and the process stays
    warm for the next one; only a process that dies is left to Tune.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], inputs: Inputs
    ) -> None:
        self._inputs = inputs
        self._base, self._data = ray.get(inputs.base), ray.get(inputs.data)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        self._curve: Iterator[Evaluation] = iter(())

    def _start(self, config: dict[str, Any]) -> None:
        self._best_accuracy = 0.0
        self._curve = self._run(Assignment(**config[ASSIGNMENT]))

    def _run(self, assignment: Assignment) -> Iterator[Evaluation]:
        spec = self._inputs.experiment.trial_spec(assignment)
        check_directory(self._inputs.directory)
        # The search never sees the test split.
        test = ray.get(self._inputs.test) if assignment.phase == "confirm" else None
        checkpoint = self._inputs.directory / "checkpoints" / spec.trial_id
        yield from run_trial(spec, self._data, self._base, checkpoint, test=test)

    def step(self) -> dict[str, Any]:
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
