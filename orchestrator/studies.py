"""Per-method Optuna studies, which take turns."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from ray.tune.result import TIME_TOTAL_S
from ray.tune.search.optuna import OptunaSearch

from orchestrator.budget import MethodBudgets
from orchestrator.experiment import Assignment, Experiment, derive_seed
from orchestrator.reports import OBJECTIVE, STATUS, WORST, learned

SamplerName = Literal["tpe", "gp", "random", "cmaes"]


def make_sampler(name: SamplerName, seed: int, trials: int) -> BaseSampler:
    """Make the Optuna sampler of one method's study.

    All but ``random`` start with random trials; the published advice of ten would leave a study of eight
    trials no model at all, so at most half of the trials are random.

    Arguments:
        name: ``tpe`` (multivariate, Falkner et al. 2018), ``gp``, ``random`` or ``cmaes``.
        seed: decides every suggestion of the study, given the results in order.
        trials: trials the study will get.
    """
    random_trials = max(1, min(10, trials // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, n_startup_trials=random_trials, seed=seed
            )
        if name == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=random_trials, seed=seed)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=random_trials, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def make_study(
    space: Mapping[str, BaseDistribution], first_trial: Mapping[str, Any], sampler: BaseSampler
) -> OptunaSearch:
    """Make one method's study; its first trial is ``first_trial``, the published default."""
    return OptunaSearch(
        space=dict(space),
        metric=OBJECTIVE,
        mode="max",
        sampler=sampler,
        points_to_evaluate=[dict(first_trial)],
    )


def make_studies(experiment: Experiment, budgets: MethodBudgets | None) -> MethodStudies:
    """Make every method's study from the experiment's seed."""
    search = experiment.search
    seeds = {method: derive_seed(experiment.seed, "study", method) for method in experiment.methods}
    studies = {
        method: make_study(
            experiment.space(method),
            experiment.first_trial(method),
            make_sampler(search.sampler, seed, search.trials),
        )
        for method, seed in seeds.items()
    }
    return MethodStudies(studies, search.trials, budgets)


class MethodStudies:
    """Let methods take turns, each with a study of its own that suggests and learns.

    Of methods with equally many trials, the one whose trials take longest goes first, so that at the end
    slots wait for short trials (Graham 1969, Bounds on Multiprocessing Timing Anomalies, section 4).

    Trials are numbered per method, so that a trial's identity does not depend on what other methods do.

    Arguments:
        studies: one per method, in the order of turns.
        trials: trials per method; with a budget, a method ends after so many failures in a row.
        budgets: what each method may spend, instead of a number of trials.
    """

    def __init__(
        self, studies: Mapping[str, OptunaSearch], trials: int, budgets: MethodBudgets | None = None
    ) -> None:
        self._studies = dict(studies)
        self._trials = trials
        self._budgets = budgets
        self._given: dict[str, set[int]] = {method: set() for method in studies}
        self._next = dict.fromkeys(studies, 0)  # all lower numbers have been given
        self._failures = dict.fromkeys(studies, 0)  # in a row
        self._seconds: dict[str, list[float]] = {method: [] for method in studies}  # that ended trials took
        self._running: dict[str, Assignment] = {}
        self._unfinished: deque[Assignment] = deque()  # trials of an interrupted run that go on
        self._foreign: set[str] = set()  # ids of those with hyperparameters that no study suggested

    @property
    def is_done(self) -> bool:
        """Whether every trial has been suggested and has ended."""
        return self._next_turn() is None and not self._running and not self._unfinished

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of turns."""
        return list(self._studies)

    def has_ended(self, method: str) -> bool:
        """Say whether all trials of a method have been suggested and have ended."""
        going = [*self._running.values(), *self._unfinished]
        return not self._is_wanted(method) and all(trial.method != method for trial in going)

    def replay(
        self, finished: Iterable[tuple[Assignment, float | None]], unfinished: Iterable[Assignment] = ()
    ) -> None:
        """Tell the studies what an interrupted run had found.

        Every study repeats its suggestions in the same order, so that its random state advances as it did. A
        suggestion that comes out differently, as it may if results of concurrent trials came in another
        order, is given up, and the study is told the recorded trial in its place.

        Arguments:
            finished: trials and what was learned from them; None is nothing.
            unfinished: trials that are suggested next, unchanged, to continue.
        """
        told = {assignment.trial_id: (assignment, objective) for assignment, objective in finished}
        going_on = {assignment.trial_id: assignment for assignment in unfinished}
        known = [*(assignment for assignment, _ in told.values()), *going_on.values()]
        last = dict.fromkeys(self._studies, -1)
        for assignment in known:
            last[assignment.method] = max(last[assignment.method], assignment.number)
        turns = [(number, method) for number in range(max(last.values()) + 1) for method in self._studies]
        for number, method in turns:
            if number > last[method]:
                continue  # suggested anew when its turn comes, with all that the study knows by then
            again = self._assign(method, number)
            if again.trial_id in told:
                self._given[method].add(number)
                self._replay_finished(again, *told[again.trial_id])
            elif again.trial_id in going_on:
                self._given[method].add(number)
                self._replay_unfinished(again, going_on[again.trial_id])

    def _replay_finished(self, again: Assignment, recorded: Assignment, objective: float | None) -> None:
        study = self._studies[again.method]
        self._count_failures(again.method, objective)
        if recorded.hyperparameters == again.hyperparameters:
            result = None if objective is None else {OBJECTIVE: objective}
            study.on_trial_complete(again.trial_id, result, error=objective is None)
        else:
            study.on_trial_complete(again.trial_id, None, error=True)
            study.add_evaluated_point(
                dict(recorded.hyperparameters), objective or 0.0, error=objective is None
            )

    def _replay_unfinished(self, again: Assignment, recorded: Assignment) -> None:
        self._unfinished.append(recorded)
        if recorded.hyperparameters != again.hyperparameters:
            self._studies[again.method].on_trial_complete(again.trial_id, None, error=True)
            self._foreign.add(again.trial_id)

    def suggest(self, trial_id: str) -> Assignment | None:
        """Return the trial that Tune runs under its id ``trial_id``; None if there are no more."""
        if self._unfinished:
            self._running[trial_id] = self._unfinished.popleft()
        elif turn := self._next_turn():
            number, method = turn
            self._given[method].add(number)
            self._running[trial_id] = self._assign(method, number)
        else:
            return None
        return self._running[trial_id]

    def _next_turn(self) -> tuple[int, str] | None:
        """Return the lowest number that a method still wants, and the slowest method that wants it."""
        wanted = [(self._next[method], method) for method in self._studies if self._is_wanted(method)]
        return min(wanted, key=lambda turn: (turn[0], -self.expected_seconds(turn[1])), default=None)

    def expected_seconds(self, method: str) -> float:
        """Return the mean seconds that ended trials of a method took; 0 if none has ended."""
        return fmean(self._seconds[method] or [0.0])

    def _is_wanted(self, method: str) -> bool:
        """Say whether a method wants another trial."""
        while self._next[method] in self._given[method]:
            self._next[method] += 1
        if self._budgets is None:
            return self._next[method] < self._trials
        # A method whose every trial fails before it has spent anything must end, too.
        return not self._budgets.is_spent(method) and self._failures[method] < self._trials

    def _count_failures(self, method: str, objective: float | None) -> None:
        """Count the trials in a row that failed: those of which a study learns nothing, or the worst."""
        has_failed = objective is None or objective == WORST
        self._failures[method] = self._failures[method] + 1 if has_failed else 0

    def _assign(self, method: str, number: int) -> Assignment:
        # A study that is asked for the same trial twice suggests the same twice.
        trial = Assignment(method, number, {})
        hyperparameters = self._studies[method].suggest(trial.trial_id)
        assert hyperparameters is not None
        return replace(trial, hyperparameters=hyperparameters)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell its study what a trial reported; ``trial_id`` is Tune's."""
        trial = self._running[trial_id]
        if OBJECTIVE in result and trial.trial_id not in self._foreign:
            self._studies[trial.method].on_trial_result(trial.trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell its study how a trial ended; ``trial_id`` is Tune's."""
        trial = self._running.pop(trial_id)
        if result:
            self._seconds[trial.method].append(result.get(TIME_TOTAL_S, 0.0))
        result = result or {}
        objective = None if error else learned(result.get(STATUS), result.get(OBJECTIVE))
        self._count_failures(trial.method, objective)
        study, failed = self._studies[trial.method], objective is None
        if trial.trial_id in self._foreign:
            study.add_evaluated_point(dict(trial.hyperparameters), objective or 0.0, error=failed)
        else:
            study.on_trial_complete(trial.trial_id, None if failed else {OBJECTIVE: objective}, failed)
