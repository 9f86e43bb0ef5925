"""How much tuning a method needs, and which of its hyperparameters matter."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import gammaln

from results.analysis.bootstrap import LEVEL, Floats
from results.analysis.metrics import good_trials
from results.schema import FAILED, HYPERPARAMETER_PREFIX, UNFINISHED

if TYPE_CHECKING:
    from results.loading import ResultSet

TRIALS_EACH = 10
"""Trials per hyperparameter that importances need. With this many, a hyperparameter that moves the score as
much as noise does comes first in 83 to 100 of 100 simulations; noise alone gets importances in 5 to 14."""

TOO_FEW = "too few trials to tell"
ONLY_CHANCE = "no more than chance is seen"

WIDE = 10.0
"""A positive hyperparameter whose values span at least this factor is assumed to be on a log scale."""


def budget_curve(
    results: ResultSet, metric: str = "validation_accuracy", draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return the expected best validation score of n trials, for every n up to the number of trials.

    Dodge et al. 2019 ("Show Your Work", https://arxiv.org/abs/1909.03004) propose this curve; it is computed
    with the unbiased estimator, the mean over all subsets of n trials (Tang et al. 2020,
    https://arxiv.org/abs/2004.13705, equation 3). A failed trial counts with a score of 0: it used up a
    trial and gave nothing. Trials of a sampler that learns, such as TPE, are not independent draws, and those
    stopped early have the score they had by then: for both the curve is an approximation. With
    ``sampler: random`` and no early stopping it is unbiased.

    Resampled trials contain none better than the best there is, so they spread too little, and the less so
    the more trials are asked about: in simulations of 6 to 100 independent trials the interval holds the true
    curve 79 to 95 times in 100 for one trial, 73 to 91 for a third of them, and 45 to 67 for all. There is no
    interval beyond a third.

    Arguments:
        results: one or more experiments.
        metric: a column of trials in which higher is better.
        draws: number of bootstrap draws over trials, for the interval.
        seed: seed of the bootstrap.

    Returns:
        Columns experiment, method, trials, expected_best, low, high (rough interval by the bootstrap; null
        for more than a third of the trials).
    """
    generator = np.random.default_rng(seed)
    search = results.trials[results.trials.phase == "search"]
    ended = search[~search.status.isin(UNFINISHED)]
    parts = []
    for (experiment, method), group in ended.groupby(["experiment", "method"], sort=False):
        scores = group[metric].where(~group.status.isin(FAILED)).fillna(0.0).to_numpy(float)
        again = generator.choice(scores, (draws, len(scores)))
        low, high = np.quantile(expected_best(again), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        trials = np.arange(1, len(scores) + 1)
        parts.append(
            pd.DataFrame(
                {
                    "experiment": experiment,
                    "method": method,
                    "trials": trials,
                    "expected_best": expected_best(scores[None])[0],
                    "low": np.where(3 * trials <= len(scores), low, np.nan),
                    "high": np.where(3 * trials <= len(scores), high, np.nan),
                }
            )
        )
    columns = ["experiment", "method", "trials", "expected_best", "low", "high"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def expected_best(scores: Floats) -> Floats:
    """Return the mean, over all subsets of n scores, of their maximum, for n = 1, 2, ...

    Arguments:
        scores: [sets, trials].

    Returns:
        [sets, trials]; column n - 1 is for n trials. The i-th smallest of m scores is the largest in
        C(i - 1, n - 1) of C(m, n) subsets.
    """
    count = scores.shape[1]
    place, size = np.arange(1, count + 1)[:, None], np.arange(1, count + 1)[None]
    with np.errstate(invalid="ignore"):
        log_share = _log_choose(place - 1, size - 1) - _log_choose(count, size)
    share = np.where(place >= size, np.exp(log_share), 0.0)
    return np.sort(scores, axis=1) @ share


def _log_choose(n: Any, k: Any) -> Floats:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1)


def importance(results: ResultSet, metric: str = "validation_accuracy", seed: int = 0) -> pd.DataFrame:
    """Return how much of what a method's hyperparameters explain of its score each of them explains.

    By functional ANOVA over a forest of trees (Hutter et al. 2014), as implemented in Optuna. The shares sum
    to 1 even where a score is nothing but noise; then the first of three hyperparameters "explains" half of
    it, however many trials there are. So they are given only for methods whose forest predicts the trials
    that a tree has not seen better than their mean does (a positive out-of-bag R², Breiman 2001).

    Arguments:
        results: one or more experiments.
        metric: a column of trials.
        seed: seed of the forest.

    Returns:
        Columns experiment, method, hyperparameter, importance (0 to 1, summing to 1 per method), trials,
        note. Where the note says why it cannot be told, the importance is null. Methods whose
        hyperparameters never varied have no rows.
    """
    rows = []
    for experiment, method, group in _scored(results, metric):
        varied = _varied(group)
        note, shares = "", dict.fromkeys(varied, float("nan"))
        if len(group) < TRIALS_EACH * len(varied):
            note = TOO_FEW
        elif varied and not _predicts(group[list(varied.values())], group[metric].to_numpy(float), seed):
            note = ONLY_CHANCE
        elif varied:
            shares = _shares(group, varied, metric, seed)
        rows += [
            {
                "experiment": experiment,
                "method": method,
                "hyperparameter": name,
                "importance": value,
                "trials": len(group),
                "note": note,
            }
            for name, value in shares.items()
        ]
    columns = ["experiment", "method", "hyperparameter", "importance", "trials", "note"]
    return pd.DataFrame(rows, columns=columns)


def _predicts(values: pd.DataFrame, scores: Floats, seed: int) -> bool:
    """Say whether a forest predicts the scores that its trees have not seen better than their mean does."""
    from sklearn.ensemble import RandomForestRegressor

    if scores.min() == scores.max():
        return False
    coded = [
        values[name] if pd.api.types.is_numeric_dtype(values[name]) else pd.factorize(values[name])[0]
        for name in values
    ]
    forest = RandomForestRegressor(oob_score=True, min_samples_leaf=2, random_state=seed)
    forest.fit(np.column_stack(coded).astype(float), scores)
    return bool(forest.oob_score_ > 0)


def _shares(group: pd.DataFrame, varied: dict[str, str], metric: str, seed: int) -> dict[str, float]:
    """Return the importance of each hyperparameter, the largest first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for _, trial in group.iterrows():
        params = {name: _plain(trial[column]) for name, column in varied.items()}
        distributions = {name: _distribution(group[column]) for name, column in varied.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=trial[metric])
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _scored(results: ResultSet, metric: str) -> list[tuple[str, str, pd.DataFrame]]:
    trials = results.trials
    good = good_trials(trials, metric)
    return [
        (str(experiment), str(method), group)
        for (experiment, method), group in good.groupby(["experiment", "method"], sort=False)
    ]


def _varied(group: pd.DataFrame) -> dict[str, str]:
    """Return the columns, by name, of a method's hyperparameters that took several values."""
    columns = [name for name in group if name.startswith(HYPERPARAMETER_PREFIX)]
    return {
        name.removeprefix(HYPERPARAMETER_PREFIX): name
        for name in columns
        if group[name].notna().all() and group[name].nunique() > 1
    }


def _distribution(values: pd.Series) -> Any:
    """Guess the distribution that values were drawn from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    few = values.nunique() < max(3, len(values) / 2)
    if few or not pd.api.types.is_numeric_dtype(values):
        return CategoricalDistribution([_plain(value) for value in sorted(values.unique())])
    low, high = float(values.min()), float(values.max())
    return FloatDistribution(low, high, log=low > 0 and high / low >= WIDE)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
