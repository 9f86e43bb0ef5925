"""Per-method Optuna studies behind one Tune searcher."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

OBJECTIVE = "objective"
"""The reported value the studies maximize and ASHA compares: best validation accuracy so far."""

SamplerName = Literal["tpe", "gp", "random", "cmaes"]


def make_sampler(name: SamplerName, seed: int, trials: int) -> BaseSampler:
    """Make the Optuna sampler of one method's study.

    TPE and the Gaussian process start from random trials; the published advice of ten would leave a
    study of eight trials no model at all, so at most half of the trials are random.

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


class MethodStudies(Searcher):
    """Give methods turns, and let each one's own study suggest and learn.

    A suggestion is ``{"method": name, "number": n, "hyperparameters": {...}}`` with ``n`` counted per
    method from 0, so that a trial's identity does not depend on what other methods do.

    Arguments:
        studies: one per method, in the order of turns.
        trials: trials per method.
    """

    def __init__(self, studies: Mapping[str, OptunaSearch], trials: int) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._studies = dict(studies)
        self._trials = trials
        self._suggested = 0
        self._method_of: dict[str, str] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is text
        number, turn = divmod(self._suggested, len(self._studies))
        if number >= self._trials:
            return Searcher.FINISHED
        method = list(self._studies)[turn]
        self._suggested += 1
        self._method_of[trial_id] = method
        hyperparameters = self._studies[method].suggest(trial_id)
        return {"method": method, "number": number, "hyperparameters": hyperparameters}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if OBJECTIVE in result:
            self._studies[self._method_of[trial_id]].on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        failed = error or result is None or OBJECTIVE not in result
        study = self._studies[self._method_of[trial_id]]
        study.on_trial_complete(trial_id, None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the only state a run needs."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a run is continued from its journal, not from Ray's state files")
