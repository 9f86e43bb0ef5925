"""The Tune trainable: feeds a trial its inputs, reports what it yields."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.brackets import EVALUATION
from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import Prepared
from orchestrator.studies import ASSIGNMENT, OBJECTIVE
from trainables.trial import Evaluation, failure_status, run_trial

POINT = "point"
STATUS = "status"
ERROR = "error"


class TrialWorker(tune.Trainable):
    """Drive one trial after another in one process, one evaluation per step.

    A trial that raises ends with a result that carries its status and error, and the process stays
    warm for the next one; only a process that dies is left to Tune.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], experiment: Experiment, prepared: Prepared, directory: Path
    ) -> None:
        self._experiment = experiment
        self._prepared = prepared
        self._directory = directory
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        self._curve: Iterator[Evaluation] = iter(())

    def _start(self, config: dict[str, Any]) -> None:
        spec = self._experiment.trial_spec(Assignment(**config[ASSIGNMENT]))
        self._best_accuracy = 0.0
        self._curve = run_trial(
            spec, self._prepared.data, self._prepared.base, self._directory / "checkpoints" / spec.trial_id
        )

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
