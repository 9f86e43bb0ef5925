"""Differences against independent computations, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from made_up import make_up
from scipy import stats
from sklearn.metrics import f1_score

from results.analysis import compare, summary, verdict
from results.analysis.metrics import reach


def test_differences_are_those_of_the_predictions_and_p_values_are_holms() -> None:
    results = make_up(examples=400).results()
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


def test_what_differs_is_said_to_and_what_does_not_is_not() -> None:
    results = make_up(examples=400).results()
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
    expected = (
        f"; as tuned here, it beats head, but shows no difference from full (within {reach:.1f} points)"
    )
    assert expected in said


def test_macro_f1_is_that_of_scikit_learn() -> None:
    results = make_up().results()
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


def test_a_cost_is_compared_by_a_paired_t_test_and_less_is_better() -> None:
    results = make_up().results()
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


def test_a_pair_is_compared_on_the_seeds_of_both_and_a_method_is_judged_on_all_of_its_own() -> None:
    made = make_up(seeds=5)
    made.fail_confirm("head", [0, 1, 2, 3])
    results = made.results()
    table = compare(results).set_index(["method_a", "method_b"])
    assert table.seeds.to_dict() == {("head", "full"): 1, ("head", "lora"): 1, ("full", "lora"): 5}
    assert table.failed_a.to_list() == [4, 4, 0]
    whole = compare(make_up(seeds=5).results()).set_index(["method_a", "method_b"])
    assert table.low["full", "lora"] == pytest.approx(whole.low["full", "lora"])
    row = summary(results).set_index("method").loc["head"]
    right = results.predictions[results.predictions.trial_id == "head-seed4"]
    assert row.seeds == 1
    assert row.confirm_failed == 4
    assert row.test_accuracy == pytest.approx((right.label == right.prediction).mean())
    assert row.test_macro_f1 == pytest.approx(row.test_accuracy)  # as made up
    said = verdict(results, "made-up")
    assert "shows no difference from full (within" in said
    assert "and head (one seed in common)" in said
    assert said.endswith(" head: 4 of 5 confirm trials failed.")


def test_who_beats_others_although_trials_failed_is_not_said_without_that() -> None:
    made = make_up(accuracy={"head": 0.7, "full": 0.85, "lora": 0.93}, seeds=5, examples=400)
    made.fail_confirm("lora", [0, 1, 2])
    results = made.results()
    said = verdict(results, "made-up")
    assert said.startswith("lora has the highest test accuracy: 93.")
    assert "%, but 3 of its 5 confirm trials failed; as tuned here, it beats " in said
    pair = compare(results).set_index(["method_a", "method_b"]).loc[("head", "lora")]
    assert pair.verdict.startswith("lora beats head by ")
    assert pair.verdict.endswith("; lora: 3 of 5 confirm trials failed")


def test_methods_with_no_seed_in_common_are_not_compared() -> None:
    made = make_up(seeds=5, examples=400)
    made.fail_confirm("lora", [0, 1, 2])
    made.fail_confirm("full", [3, 4])
    table = compare(made.results()).set_index(["method_a", "method_b"])
    pair = table.loc[("full", "lora")]
    assert (pair.seeds, pair.different) == (0, False)
    assert pair.verdict.startswith("full and lora: not compared, no seed in common; ")
    assert table.different["head", "full"], "other pairs are"
    said = verdict(made.results(), "made-up")
    assert "beats head, but shows no difference from full (no seed in common)" in said


@pytest.mark.parametrize("metric", ["test_accuracy", "train_seconds"])
def test_one_seed_shows_no_difference(metric: str) -> None:
    results = make_up(seeds=1, examples=400).results()
    table = compare(results, metric)
    assert not table.different.any()
    assert table[["low", "high", "p_value", "p_corrected"]].isna().all(axis=None)
    assert table.verdict.str.endswith("no interval from a single seed, so no difference can be shown").all()
    said = verdict(results, "made-up", metric)
    assert "shows no difference from" in said
    assert "A single seed shows no difference: chance in training is not accounted for." in said
    assert "beats" not in said
    assert "nan" not in said


def test_what_all_methods_get_right_does_not_show_that_they_are_the_same() -> None:
    made = make_up(accuracy={"full": 0.9, "lora": 0.9}, seeds=5, examples=30)
    for row in made.predictions:
        row["prediction"] = row["label"]
    results = made.results()
    row = compare(results).iloc[0]
    # No discordant example of 30 leaves differences of 0.05 and more likely enough: McNemar's exact test of
    # them would be significant for none below six discordant examples of one direction.
    assert row.low < -0.05
    assert row.high > 0.05
    assert row.verdict == f"full and lora: no difference shown (within {100 * row.high:.1f} points)"
    table = summary(results)
    assert (table.test_accuracy_high == 1).all()
    assert (table.test_accuracy_low < 0.9).all()


def test_no_difference_is_never_within_nothing() -> None:
    assert reach(-0.0004, 0.0002, "test_accuracy") == "within less than 0.1 points"
    assert reach(-0.0104, 0.0002, "test_accuracy") == "within 1.0 points"
    assert reach(-0.0001, 0.0, "test_loss") == "within less than 0.001"
    assert reach(-0.2, 0.2, "tokens_per_second") == "within less than 1/s"
    assert reach(0.0, 0.0, "model_bytes") == "the same on every seed"


def test_of_validation_only_seeds_are_counted_which_is_said() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.9})
    made.trials[4]["validation_accuracy"] += 0.001
    said = compare(made.results(), "validation_accuracy").verdict.iloc[0]
    assert said.startswith("lora beats full by ")
    assert said.endswith("], on these validation examples: another validation split could say otherwise")
    said = verdict(made.results(), "made-up", "validation_accuracy")
    assert "On these validation examples: another" in said


def test_pairs_are_in_the_order_of_the_searches_whichever_was_confirmed_first() -> None:
    results = make_up().results()
    searched, confirmed = (results.trials[results.trials.phase == name] for name in ("search", "confirm"))
    # The slowest method is confirmed first.
    late_first = pd.concat([searched, confirmed.iloc[::-1]], ignore_index=True)
    table = compare(replace(results, trials=late_first))
    pairs = list(zip(table.method_a, table.method_b, strict=True))
    assert pairs == [("head", "full"), ("head", "lora"), ("full", "lora")]


def test_experiments_are_compared_each_by_itself() -> None:
    both = make_up("one") + make_up("other", {"head": 0.9, "full": 0.5})
    table = compare(both.results())
    assert table.experiment.value_counts().to_dict() == {"one": 3, "other": 1}
    assert table[table.experiment == "other"].difference.iloc[0] > 0.3


def test_nothing_confirmed_is_nothing_compared() -> None:
    results = make_up(seeds=0).results()
    assert compare(results).empty
    assert verdict(results, "made-up").startswith("Not confirmed")


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"expected one of test_accuracy, .*got 'acuracy'"):
        compare(make_up().results(), "acuracy")
