"""The methods' studies in a file that ``optuna-dashboard`` opens: ``optuna.journal`` of the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.experiment import Experiment
from orchestrator.history import TrialHistory

STUDIES_FILE: Final = "optuna.journal"


def study_name(experiment: str, method: str) -> str:
    """Name the study of a method."""
    return f"{experiment}/{method}"


class StudyJournal:
    """Write each trial of the search phase to its method's study; failed trials are marked as failed.

    The searcher keeps its studies in memory and never reads the file, so nothing in it can change a
    suggestion. A run that is continued gets a new file, in which no trial appears twice.

    Arguments:
        experiment: what runs.
        directory: of the run.
        finished: trials that an earlier process finished.
        say: is told if the file cannot be written any more, which ends the file and nothing else.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        finished: Iterable[TrialHistory] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self._file = directory / STUDIES_FILE
        self._say = say
        self._has_failed = False
        self._spaces = {method: experiment.space(method) for method in experiment.methods}
        self._storage_ids: dict[str, int] = {}
        for old in directory.glob(f"{STUDIES_FILE}*"):  # the lock of a killed process, too
            old.unlink()
        self._storage = JournalStorage(JournalFileBackend(str(self._file)))
        self._studies = {
            method: self._storage.create_new_study(
                [StudyDirection.MAXIMIZE], study_name(experiment.name, method)
            )
            for method in experiment.methods
        }
        for trial in sorted(finished, key=lambda trial: trial.assignment.number):
            self.changed(trial)

    def changed(self, trial: TrialHistory) -> None:
        """Record a trial's newest state."""
        if trial.assignment.phase != "search" or self._has_failed:
            return
        try:
            self._write(trial)
        except Exception as error:  # such as Optuna's JSONDecodeError for a line cut off by a full disk
            self._has_failed = True
            self._say(f"{self._file} cannot be written any more: {error}; the run goes on without it")

    def _write(self, trial: TrialHistory) -> None:
        number = self._storage_ids.get(trial.spec.trial_id)
        if number is None:
            study = self._studies[trial.spec.method]
            self._storage_ids[trial.spec.trial_id] = self._storage.create_new_trial(
                study, self._frozen(trial)
            )
        elif trial.status != "running":
            self._storage.set_trial_user_attr(number, "status", trial.status)
            if trial.error:
                self._storage.set_trial_user_attr(number, "error", trial.error)
            values = None if trial.objective is None else [trial.objective]
            self._storage.set_trial_state_values(number, _state(trial), values)
        elif trial.curve:
            last = trial.curve[-1]
            self._storage.set_trial_intermediate_value(number, last.evaluation, last.validation_accuracy)

    def _frozen(self, trial: TrialHistory) -> FrozenTrial:
        attributes = {"trial_id": trial.spec.trial_id, "seed": trial.spec.seed}
        if trial.status != "running":
            attributes |= {"status": trial.status} | ({"error": trial.error} if trial.error else {})
        hyperparameters = dict(trial.assignment.hyperparameters)
        return FrozenTrial(
            number=-1,  # the storage assigns both
            trial_id=-1,
            state=_state(trial),
            value=trial.objective,
            datetime_start=trial.started_at,
            datetime_complete=trial.ended_at,
            params=hyperparameters,
            distributions={name: self._spaces[trial.spec.method][name] for name in hyperparameters},
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={point.evaluation: point.validation_accuracy for point in trial.curve},
        )


def _state(trial: TrialHistory) -> TrialState:
    if trial.status == "running":
        return TrialState.RUNNING
    return TrialState.FAIL if trial.objective is None else TrialState.COMPLETE
