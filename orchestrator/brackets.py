"""Per-method ASHA brackets behind one Tune scheduler (Li et al. 2020, https://arxiv.org/abs/1810.05934)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.budget import MethodBudgets
from orchestrator.experiment import Assignment, Experiment
from orchestrator.reports import EVALUATION, OBJECTIVE


def make_bracket(evaluations: int, grace: int, reduction_factor: int) -> AsyncHyperBandScheduler:
    """Make one method's bracket.

    Arguments:
        evaluations: the most that a trial of the method makes.
        grace: evaluations before a trial may be stopped.
        reduction_factor: one trial in this many passes a rung.
    """
    return AsyncHyperBandScheduler(
        time_attr=EVALUATION,
        metric=OBJECTIVE,
        mode="max",
        max_t=evaluations,
        grace_period=min(grace, evaluations),
        reduction_factor=reduction_factor,
        stop_last_trials=False,
    )


def make_brackets(experiment: Experiment, budgets: MethodBudgets | None) -> MethodBrackets:
    """Make every method's bracket: ASHA, or one that stops nothing."""
    search = experiment.search
    brackets: dict[str, TrialScheduler] = {
        method: make_bracket(
            experiment.most_evaluations(method), search.grace_evaluations, search.reduction_factor
        )
        if search.early_stopping == "asha"
        else FIFOScheduler()
        for method in experiment.methods
    }
    return MethodBrackets(brackets, budgets)


class MethodBrackets(FIFOScheduler):
    """Judge each trial against trials of its own method only, and start trials in the order suggested.

    Arguments:
        brackets: one per method.
        budgets: stops a method's trials once the method has spent its budget.
    """

    def __init__(self, brackets: Mapping[str, TrialScheduler], budgets: MethodBudgets | None = None) -> None:
        super().__init__()
        self._brackets = dict(brackets)
        self._budgets = budgets
        self._turns: dict[str, int] = {}  # positions in the order suggested, by Tune's id
        self._stopped: set[str] = set()  # by Tune's id

    def _bracket(self, trial: Trial) -> TrialScheduler:
        assignment = Assignment.from_config(trial.config)
        # Trials of the confirm phase are never stopped early.
        return self._brackets[assignment.method] if assignment.phase == "search" else FIFOScheduler()

    def replay(self, method: str, trial_id: str, objectives: Sequence[float]) -> None:
        """Replay the objectives of a trial of an interrupted run, in order of evaluation, to its bracket.

        The trial may continue: the bracket knows it by this id, not by Tune's.
        """
        bracket = self._brackets[method]
        trial, controller = _named(trial_id), cast(TuneController, None)
        bracket.on_trial_add(controller, trial)
        for evaluation, objective in enumerate(objectives, start=1):
            bracket.on_trial_result(controller, trial, {EVALUATION: evaluation, OBJECTIVE: objective})
        bracket.on_trial_remove(controller, trial)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        self._turns[trial.trial_id] = len(self._turns)
        self._bracket(trial).on_trial_add(tune_controller, _known(trial))

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        # At each of Tune's steps, FIFOScheduler would look at all trials, ended ones included.
        live = tune_controller.get_live_trials()
        waiting = [
            trial
            for trial in live
            if trial.status == Trial.PENDING and not _is_starting(trial, tune_controller)
        ]
        return min(waiting, key=lambda trial: self._turns[trial.trial_id], default=None)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self._bracket(trial).on_trial_error(tune_controller, _known(trial))

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = self._bracket(trial).on_trial_result(tune_controller, _known(trial), result)
        # Remembered: if the worker dies before its trial is stopped, the trial repeats an evaluation, and the
        # rung, which decides once per trial, would let it continue.
        if decision == TrialScheduler.STOP:
            self._stopped.add(trial.trial_id)
        is_over = trial.trial_id in self._stopped or self._spend(trial, result)
        return TrialScheduler.STOP if is_over else decision

    def _spend(self, trial: Trial, result: dict[str, Any]) -> bool:
        """Take what a search trial has spent from its method's budget; return whether that is spent."""
        assignment = Assignment.from_config(trial.config)
        if self._budgets is None or assignment.phase != "search":
            return False
        self._budgets.note(assignment.method, assignment.trial_id, result)
        return self._budgets.is_spent(assignment.method)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        self._spend(trial, result)
        self._bracket(trial).on_trial_complete(tune_controller, _known(trial), result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        self._bracket(trial).on_trial_remove(tune_controller, _known(trial))

    def debug_string(self) -> str:
        return "\n".join(f"{name}: {bracket.debug_string()}" for name, bracket in self._brackets.items())


def _is_starting(trial: Trial, tune_controller: Any) -> bool:
    """Say whether a worker process is already starting for a trial.

    If the trial were chosen to run, Tune would give it the next warm worker and end that process. If trials
    are shorter than the start of a process, one process after another would be started in vain, and a slot
    would stay idle.
    """
    tune = tune_controller._tune_controller  # the wrapper that schedulers get hides this
    worker = tune._trial_to_actor.get(trial)
    return worker is not None and tune._actor_manager.is_actor_started(worker)


def _known(trial: Trial) -> Trial:
    """Return the stand-in that a bracket gets for one of Tune's trials: it reads only the id."""
    return _named(Assignment.from_config(trial.config).trial_id)


def _named(trial_id: str) -> Trial:
    return cast(Trial, SimpleNamespace(trial_id=trial_id))
