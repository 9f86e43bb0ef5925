"""Differences against independent computations, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from results.analysis import compare, verdict

Maker = Callable[..., Any]


def test_differences_are_those_of_the_predictions_and_p_values_are_holms(made_up: Maker) -> None:
    results = made_up(examples=400).results()
    table = compare(results).set_index(["method_a", "method_b"])
    assert set(table.index) == {("head", "full"), ("head", "lora"), ("full", "lora")}
    predictions = results.predictions
    share = (predictions.label == predictions.prediction).groupby(predictions.method).mean()
    for (a, b), row in table.iterrows():
        assert row.difference == pytest.approx(share[a] - share[b])
        assert row.low < row.difference < row.high
    assert set(table.seeds) == {3}
    assert set(table.examples) == {400}
    ordered = table.p_value.sort_values()
    largest = 0.0
    for position, (pair, p_value) in enumerate(ordered.items()):
        largest = max(largest, min(1.0, p_value * (len(ordered) - position)))
        assert table.p_corrected[pair] == pytest.approx(largest)


def test_what_differs_is_said_to_and_what_does_not_is_not(made_up: Maker) -> None:
    results = made_up(examples=400).results()
    table = compare(results).set_index(["method_a", "method_b"])
    row = table.loc[("head", "full")]
    assert row.different
    assert row.verdict.startswith(f"full beats head by {-100 * row.difference:.1f} points [")
    row = table.loc[("full", "lora")]
    assert not row.different
    reach = 100 * max(abs(row.low), abs(row.high))
    assert row.verdict == f"full and lora: no difference shown (within {reach:.1f} points)"
    said = verdict(results, "made-up")
    assert said.startswith("lora has the highest test accuracy: 86.")
    assert f"it beats head, but shows no difference from full (within {reach:.1f} points)" in said


def test_macro_f1_is_that_of_scikit_learn(made_up: Maker) -> None:
    results = made_up().results()
    table = compare(results, "test_macro_f1").set_index(["method_a", "method_b"])
    scores = {
        method: sum(
            f1_score(trial.label, trial.prediction, average="macro") for _, trial in group.groupby("trial_id")
        )
        / 3
        for method, group in results.predictions.groupby("method")
    }
    for (a, b), row in table.iterrows():
        assert row.difference == pytest.approx(scores[a] - scores[b])


def test_a_cost_is_compared_by_a_paired_t_test_and_less_is_better(made_up: Maker) -> None:
    results = made_up().results()
    trials = results.trials[results.trials.phase == "confirm"]
    # Differences that vary, or there is nothing to test.
    results.trials.loc[trials.index[0], "train_seconds"] += 0.5
    trials = results.trials[results.trials.phase == "confirm"]
    seconds = {method: group.sort_values("seed").train_seconds for method, group in trials.groupby("method")}
    row = compare(results, "train_seconds").set_index(["method_a", "method_b"]).loc[("head", "lora")]
    expected = stats.ttest_rel(seconds["head"].to_numpy(), seconds["lora"].to_numpy())
    assert row.p_value == pytest.approx(expected.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert row.verdict.startswith("head beats lora by 1.8 s")
    assert verdict(results, "made-up", "train_seconds").startswith("head has the lowest train seconds")


def test_methods_are_compared_on_the_seeds_that_all_of_them_have(made_up: Maker) -> None:
    made = made_up()
    made.trials = [row for row in made.trials if row["trial_id"] != "full-seed1"]
    table = compare(made.results())
    assert set(table.seeds) == {2}


def test_one_seed_says_so(made_up: Maker) -> None:
    results = made_up(seeds=1, examples=400).results()
    said = compare(results).set_index(["method_a", "method_b"]).verdict
    assert "single seed, so chance in training is not accounted for" in said[("head", "full")]
    assert "no interval from a single seed" in compare(results, "train_seconds").verdict.iloc[0]
    assert verdict(results, "made-up").endswith("Single seed: chance in training is not accounted for.")
    assert "nan" not in verdict(results, "made-up", "train_seconds")


def test_methods_that_are_not_confirmed_are_named(made_up: Maker) -> None:
    made = made_up()
    made.trials = [row for row in made.trials if not row["trial_id"].startswith("full-seed")]
    assert verdict(made.results(), "made-up").endswith("it beats head. Not confirmed, so not compared: full.")
    made.trials = [row for row in made.trials if not row["trial_id"].startswith("head-seed")]
    assert verdict(made.results(), "made-up").endswith("%. Not confirmed, so not compared: head and full.")
    for row in made.trials:
        row["peak_memory_bytes"] = None
    assert verdict(made.results(), "made-up", "peak_memory_bytes").startswith("Not compared: no peak memory")


def test_pairs_are_in_the_order_of_the_searches_whichever_was_confirmed_first(made_up: Maker) -> None:
    results = made_up().results()
    searched, confirmed = (results.trials[results.trials.phase == name] for name in ("search", "confirm"))
    # The slowest method is confirmed first.
    late_first = pd.concat([searched, confirmed.iloc[::-1]], ignore_index=True)
    table = compare(replace(results, trials=late_first))
    pairs = list(zip(table.method_a, table.method_b, strict=True))
    assert pairs == [("head", "full"), ("head", "lora"), ("full", "lora")]


def test_experiments_are_compared_each_by_itself(made_up: Maker) -> None:
    both = made_up("one") + made_up("other", {"head": 0.9, "full": 0.5})
    table = compare(both.results())
    assert table.experiment.value_counts().to_dict() == {"one": 3, "other": 1}
    assert table[table.experiment == "other"].difference.iloc[0] > 0.3


def test_nothing_confirmed_is_nothing_compared(made_up: Maker) -> None:
    results = made_up(seeds=0).results()
    assert compare(results).empty
    assert verdict(results, "made-up").startswith("Not confirmed")


def test_an_unknown_metric_is_refused_by_name(made_up: Maker) -> None:
    with pytest.raises(ValueError, match=r"expected one of test_accuracy, .*got 'acuracy'"):
        compare(made_up().results(), "acuracy")
