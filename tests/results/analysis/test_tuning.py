from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_up
from scipy import stats

from results.analysis import budget_curve, importance
from results.analysis.tuning import expected_best


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_expected_best_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    found = expected_best(np.array([scores]))[0]
    for size in range(1, len(scores) + 1):
        assert found[size - 1] == pytest.approx(fmean(max(part) for part in combinations(scores, size)))


def test_a_budget_curve_counts_failures_as_nothing_and_rises_to_the_best() -> None:
    made = make_up(accuracy={"lora": 0.8}, seeds=0)
    made.fail([1], "boom")
    made.trials[0]["status"] = "stopped"
    curve = budget_curve(made.results())
    scores = [row["validation_accuracy"] or 0.0 for row in made.trials]
    assert list(curve.trials) == [1, 2, 3, 4]
    assert curve.expected_best.iloc[0] == pytest.approx(fmean(scores))
    assert curve.expected_best.iloc[-1] == pytest.approx(max(scores))
    assert curve.expected_best.is_monotonic_increasing
    assert curve.low[0] <= curve.expected_best[0] <= curve.high[0] <= max(scores) + 1e-9
    assert curve.loc[1:, ["low", "high"]].isna().all(axis=None), "no interval beyond a third of the trials"


def test_the_hyperparameter_that_decides_is_found_important() -> None:
    made = make_up(accuracy={"lora": 0.8, "full": 0.8}, trials=40, seeds=0)
    for row in made.trials:
        row["validation_accuracy"] = 0.5 + 0.1 * (np.log10(row["hp_learning_rate"]) + 5)
    shares = importance(made.results())
    mine = shares[shares.method == "lora"].set_index("hyperparameter").importance
    assert mine.sum() == pytest.approx(1)
    assert mine["learning_rate"] > 0.8
    assert set(shares[shares.method == "full"].hyperparameter) == {"learning_rate"}
    assert (shares.note == "").all()


def test_importance_takes_ten_trials_for_each_hyperparameter() -> None:
    for trials, told in ((19, False), (20, True)):
        made = make_up(accuracy={"lora": 0.8}, trials=trials, seeds=0)
        for row in made.trials:
            row["validation_accuracy"] = 0.5 + 0.1 * (np.log10(row["hp_learning_rate"]) + 5)
        shares = importance(made.results())
        assert set(shares.hyperparameter) == {"learning_rate", "rank"}
        assert shares.importance.notna().all() == told
        assert set(shares.note) == {"" if told else "too few trials to tell"}


def test_noise_has_no_important_hyperparameter() -> None:
    generator = np.random.default_rng(0)
    told, simulations = 0, 20
    for _ in range(simulations):
        made = make_up(accuracy={"lora": 0.8}, trials=20, seeds=0)
        for row in made.trials:
            row["validation_accuracy"] = float(generator.normal(0.8, 0.02))
        shares = importance(made.results())
        told += shares.importance.notna().any()
        assert set(shares.note) <= {"", "no more than chance is seen"}
    assert told <= stats.binom.ppf(0.999, simulations, 0.1)
