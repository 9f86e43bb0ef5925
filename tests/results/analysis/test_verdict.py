"""What is said of an experiment: who leads, whether that is more than guessing, and who costs less."""

from __future__ import annotations

import pytest
from made_up import make_up

from results.analysis import verdict
from results.analysis.verdict import SAVINGS


def test_a_method_of_which_every_confirm_trial_failed_is_named_with_that() -> None:
    made = make_up()
    made.fail_confirm("lora", [0, 1, 2])
    said = verdict(made.results(), "made-up")
    assert said.endswith("Not confirmed, so not compared: lora. lora: 3 of 3 confirm trials failed.")
    for method in ("head", "full"):
        made.fail_confirm(method, [0, 1, 2])
    said = verdict(made.results(), "made-up")
    assert said.startswith("Not confirmed: without test results")
    assert "head: 3 of 3 confirm trials failed." in said


def test_who_is_best_on_average_may_be_beaten_on_the_seeds_in_common() -> None:
    made = make_up(accuracy={"full": 0.9, "lora": 0.9}, seeds=4, examples=400)
    full = [p for p in made.predictions if p["method"] == "full"]
    for row in full:  # on seeds 0 and 1 better than lora, on the others, where lora failed, far worse
        worse = row["seed"] > 1 and row["example_id"] % 3 == 0
        row["prediction"] = "x" if worse else row["label"]
    made.fail_confirm("lora", [2, 3])
    said = verdict(made.results(), "made-up")
    assert said.startswith("lora has the highest test accuracy: 90.")
    assert "is beaten on their common seeds by full" in said


def test_methods_that_are_not_confirmed_are_named() -> None:
    made = make_up()
    made.trials = [row for row in made.trials if not row["trial_id"].startswith("full-seed")]
    said = verdict(made.results(), "made-up")
    assert "it beats head. " in said
    assert said.endswith(" Not confirmed, so not compared: full.")
    made.trials = [row for row in made.trials if not row["trial_id"].startswith("head-seed")]
    assert verdict(made.results(), "made-up").endswith("%. Not confirmed, so not compared: head and full.")
    for row in made.trials:
        row["peak_memory_bytes"] = None
    assert verdict(made.results(), "made-up", "peak_memory_bytes").startswith("Not compared: no peak memory")


def test_what_is_no_better_than_the_most_frequent_label_is_named() -> None:
    made = make_up(accuracy={"head": 0.62, "full": 0.9, "lora": 0.9}, examples=400)
    for row in made.predictions:  # 60% are labelled 0, and head gets 62% right
        is_right = row["label"] == row["prediction"]
        row["label"] = "0" if row["example_id"] < 240 else "1"
        row["prediction"] = row["label"] if is_right else {"0": "1", "1": "0"}[row["label"]]
    said = verdict(made.results(), "made-up")
    assert " Always answering '0' scores 60.0%; head may be no better." in said
    said = verdict(made.results(), "made-up", "test_macro_f1")
    assert " Always answering '0' scores 37.5%." in said, "F1 of 0.75 and 0"
    assert "Always" not in verdict(made.results(), "made-up", "test_loss")


def test_where_nothing_is_learned_no_method_leads() -> None:
    made = make_up(accuracy={"head": 0.5, "lora": 0.5}, examples=400)
    for row in made.predictions:
        if row["method"] == "lora" and row["seed"] < 2:
            row["prediction"] = "1"
    said = verdict(made.results(), "made-up")
    nothing = "No method is shown to be better than always answering '0', which scores 50.0%. "
    assert said.startswith(nothing)
    assert said.endswith(" All examples get the same answer from lora on 2 of 3 seeds.")


@pytest.mark.parametrize("methods", [["lora"], ["full", "lora"]])
@pytest.mark.parametrize("cost", SAVINGS)
def test_a_cost_that_nobody_has_measured_is_not_spoken_of(cost: str, methods: list[str]) -> None:
    made = make_up(accuracy=dict.fromkeys(methods, 0.9), examples=400)
    for row in made.trials:
        row[cost] = None
    said = verdict(made.results(), "made-up")
    assert "Always answering '0' scores 50.0%." in said
    assert SAVINGS[cost] not in said


def test_who_may_be_no_better_than_guessing_is_not_recommended_for_its_cost() -> None:
    made = make_up(accuracy={"head": 0.55, "full": 0.62}, examples=60)
    for row in made.trials:
        if row["method"] == "head":
            row["train_seconds"] /= 10
    said = verdict(made.results(), "made-up")
    assert "it shows no difference from head" in said
    assert "head may be no better" in said
    assert "fastest" not in said


def test_of_methods_that_are_tied_the_cheapest_are_named() -> None:
    """By what is shown and matters: lora takes a tenth longer than full, and no less than head by far."""
    made = make_up(accuracy={"head": 0.7, "full": 0.9, "lora": 0.9}, examples=400)
    for row in made.trials:
        if row["method"] == "lora":
            row |= {"checkpoint_bytes": 10**5, "train_seconds": row["train_seconds"] - 2.5}
    said = verdict(made.results(), "made-up")
    leader, other = ("full", "lora") if said.startswith("full") else ("lora", "full")
    fastest = (
        "lora trains fastest (9.6 s against 11.1 s)" if leader == "full" else "lora trains fastest (9.6 s)"
    )
    assert f" Of {leader} and {other}, {fastest} and has the smallest checkpoint (0.1 MB" in said
    assert "full needs the least memory (200.0 MB" in said
    for row in made.trials:
        row["trials_per_pack"] = 2
    said = verdict(made.results(), "made-up")
    assert f" Of {leader} and {other}, lora has the smallest checkpoint (0.1 MB" in said
    assert not said.count("trains fastest") + said.count("least memory")
