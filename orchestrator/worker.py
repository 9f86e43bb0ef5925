"""The Tune trainable: feeds a trial its inputs, reports what it yields."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef, tune

from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import Prepared
from orchestrator.reports import ASSIGNMENT, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.state import TrialState
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
    warm for the next one. Where a process dies, Tune has another one go on from the trial's last state.
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

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._state.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # a directory, as saved
        self._go_on(TrialState.read(Path(checkpoint)))

    def _start(self, config: dict[str, Any]) -> None:
        self._assignment = Assignment(**config[ASSIGNMENT])
        self._go_on(TrialState())

    def _go_on(self, state: TrialState) -> None:
        self._state = state
        best = state.progress.best
        self._best_accuracy = best[0] if best else 0.0
        self._curve = self._run(self._assignment, state)

    def _run(self, assignment: Assignment, state: TrialState) -> Iterator[Evaluation]:
        spec = self._inputs.experiment.trial_spec(assignment)
        # The search never sees the test split.
        test = ray.get(self._inputs.test) if assignment.phase == "confirm" else None
        checkpoint = self._inputs.directory / "checkpoints" / spec.trial_id
        yield from run_trial(spec, self._data, self._base, checkpoint, test, state)

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
