"""What stands above an experiment's sections, without a browser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from made_up import MadeUp, make_up

from results.report.headline import budget_rule_of, notice_of
from results.report.view import View


def view(made: MadeUp) -> View:
    return View(made.results(), "made-up", "made-up")


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"search": {"trials": 4}}, "had 4 trials to find"),
        (
            {"search": {"trials": 4}, "budget": {"examples": 12000}},
            "each method had about 12,000 training examples (used: 4,000; it is checked only when a trial"
            " evaluates) to find",
        ),
        (
            {"budget": {"examples": 1, "train_seconds": 2.5}},
            "each method had about 2.5 seconds of training (used: 39.0 to 47.0; it is checked only when a "
            "trial evaluates) to find",
        ),
        ({"search": 4, "budget": {"examples": "many"}}, "Budget rule: not recorded."),
        ([], "Budget rule: not recorded."),
        (None, "Budget rule: not recorded."),
    ],
)
def test_the_budget_rule_is_that_of_the_experiment_file(settings: Any, rule: str) -> None:
    made = make_up(examples=4)
    for row in made.trials:
        row["settings"] = None if settings is None else json.dumps({"experiment": settings})
    assert rule in budget_rule_of(view(made))


def test_seeds_are_counted_for_each_method_where_they_differ() -> None:
    made = make_up(examples=4)
    assert "retrained on 3 fresh seeds and" in budget_rule_of(view(made))
    made.fail_confirm("lora", [0])
    assert "retrained on fresh seeds (full 3, head 3, lora 2) and" in budget_rule_of(view(made))
    assert "retrained on 1 fresh seed and" in budget_rule_of(view(make_up(seeds=1, examples=4)))
    assert "no configuration has been confirmed" in budget_rule_of(view(make_up(seeds=0)))


def test_what_is_unfinished_and_costs_that_mislead_are_noticed() -> None:
    made = make_up(seeds=0)
    assert notice_of(view(made)) == ""
    made.trials[1]["gpus_per_trial"] = 1.0
    assert notice_of(view(made)) == ""
    made.trials[2]["gpus_per_trial"] = 0.5
    assert notice_of(view(made)) == "Trials shared GPUs: do not compare their times."
    made.trials[0]["device"], made.trials[1]["device"] = "cuda:NVIDIA A10G", None
    assert notice_of(view(made)) == (
        "Trials ran on cpu and cuda:NVIDIA A10G: do not compare their times and memory."
    )
    made.trials[0]["status"] = "interrupted"
    made.trials[1]["trials_per_pack"] = 2
    assert notice_of(view(made)) == (
        "This experiment was interrupted: 1 trial is unfinished."
        " Trials were trained in packs: do not compare their times and memory."
    )
    made.trials[1]["status"] = made.trials[2]["status"] = "running"
    assert notice_of(view(made)).startswith("This experiment is still running: 2 trials are in progress.")
