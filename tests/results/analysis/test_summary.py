from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import make_up

from results.analysis import best_trials, claims, compare, summary
from results.analysis.claims import FAILS, HOLDS, UNDECIDED, UNKNOWN


def test_a_row_has_the_best_trial_the_test_interval_and_one_trials_costs() -> None:
    made = make_up()
    made.fail([3], "out of luck")  # the best of head's four
    for row in made.trials[4:7]:
        row["hp_learning_rate"] = made.trials[2]["hp_learning_rate"]
    results = made.results()
    table = summary(results).set_index("method")
    assert list(table.index) == ["head", "full", "lora"]
    assert table.trials.to_dict() == {"head": 4, "full": 4, "lora": 4}
    assert table.failed.to_dict() == {"head": 1, "full": 0, "lora": 0}
    assert table.best_trial.to_dict() == {"head": "head-002", "full": "full-003", "lora": "lora-003"}
    assert table.hp_learning_rate["full"] == results.trials.set_index("trial_id").hp_learning_rate["full-003"]
    confirmed = results.trials[results.trials.phase == "confirm"].groupby("method")
    for column in ("test_accuracy", "train_seconds", "peak_memory_bytes"):
        assert table[column].to_dict() == pytest.approx(confirmed[column].mean().to_dict())
    assert (table.test_accuracy_low < table.test_accuracy).all()
    assert (table.test_accuracy < table.test_accuracy_high).all()
    assert table.search_train_seconds["lora"] == pytest.approx(
        results.trials[
            (results.trials.phase == "search") & (results.trials.method == "lora")
        ].train_seconds.sum()
    )


def test_without_a_confirm_phase_costs_are_the_best_trials_and_test_is_null() -> None:
    results = make_up(seeds=0).results()
    table = summary(results).set_index("method")
    assert table[["seeds", "test_accuracy", "test_accuracy_low"]].isna().all(axis=None)
    best = results.trials.set_index("trial_id").loc[table.best_trial["lora"]]
    assert table.train_seconds["lora"] == best.train_seconds


def test_what_confirmed_another_configuration_than_the_best_does_not_count() -> None:
    """As while a search that had ended goes on with more trials."""
    made = make_up()
    better = next(row for row in made.trials if row["trial_id"] == "full-000")
    better |= {"validation_accuracy": 0.99}
    results = made.results()
    table = summary(results).set_index("method")
    assert table.best_trial["full"] == "full-000"
    assert table.test_accuracy.isna().to_dict() == {"head": False, "full": True, "lora": False}
    assert table.train_seconds["full"] == better["train_seconds"]
    assert "full" not in " ".join(compare(results).to_string().split())
    for row in made.trials:
        if row["trial_id"].startswith("full-seed"):
            row["hp_learning_rate"] = better["hp_learning_rate"]
    assert not summary(made.results()).test_accuracy.isna().any()


def test_ties_in_accuracy_go_to_the_lower_loss_then_to_the_earlier_trial() -> None:
    made = make_up(accuracy={"lora": 0.8}, trials=3, seeds=0)
    for row, loss in zip(made.trials, (0.5, 0.4, 0.4), strict=True):
        row |= {"validation_accuracy": 0.8, "validation_loss": loss}
    assert list(best_trials(made.results().trials).trial_id) == ["lora-001"]


def test_the_founding_claims_get_the_verdicts_that_were_planted() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.82, "qlora": 0.81})
    for row in made.trials:
        if row["method"] == "qlora":
            row["model_bytes"] = 1_600_000  # of 10,000,000: 84% less
    found = claims(made.results()).set_index("claim")
    assert found.verdict["QLoRA makes the model 84% smaller"] == HOLDS
    assert found.evidence["QLoRA makes the model 84% smaller"] == "10.0 MB to 1.6 MB: 84% less"
    # Losses and times were planted with a constant gap from seed to seed: full below lora below qlora.
    assert found.verdict["full fine-tuning has the lowest training loss"] == HOLDS
    assert found.verdict["LoRA trains faster than full fine-tuning"] == FAILS
    assert found.verdict["LoRA validates better than full fine-tuning"] == HOLDS
    # The gap between validation and training loss is planted lower for lora: 0.1 less of it by index.
    assert found.verdict["full fine-tuning overfits more than LoRA"] == HOLDS


def test_what_was_not_recorded_cannot_be_said() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.82, "qlora": 0.81})
    for row in made.trials:
        row |= {"final_train_loss": None, "model_bytes": None, "trials_per_pack": 4}
    found = claims(replace(made.results(), metrics=make_up(evaluations=0).results().metrics))
    found = found.set_index("claim").verdict
    assert found["LoRA validates better than full fine-tuning"] == HOLDS
    assert set(found.drop("LoRA validates better than full fine-tuning")) == {UNKNOWN}


def test_times_of_trials_that_shared_a_gpu_say_nothing() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.82})
    for row in made.trials:
        row["gpus_per_trial"] = 0.25
    found = claims(made.results()).set_index("claim")
    assert found.verdict["LoRA trains faster than full fine-tuning"] == UNKNOWN
    assert found.evidence["LoRA trains faster than full fine-tuning"].startswith("Trials shared GPUs")


def test_what_noise_hides_is_not_claimed_and_what_is_missing_cannot_be_said() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.8})
    for row, shift in zip(made.trials, [0.0, 0.03, -0.03, 0.01] * 4, strict=False):
        row |= {"validation_accuracy": 0.8 + shift, "hp_learning_rate": 1e-4, "hp_rank": 4}
    found = claims(made.results()).set_index("claim").verdict
    assert found["LoRA validates better than full fine-tuning"] == UNDECIDED
    assert found["QLoRA makes the model 84% smaller"] == UNKNOWN
    assert set(claims(make_up(seeds=0).results()).verdict) == {UNKNOWN}
    one = claims(make_up(seeds=1).results()).set_index("claim").evidence
    assert "a single seed cannot tell" in one["LoRA validates better than full fine-tuning"]


def test_failed_confirm_trials_stand_in_the_evidence_and_so_does_what_validation_cannot_say() -> None:
    made = make_up(accuracy={"full": 0.8, "lora": 0.82}, seeds=4)
    made.fail_confirm("lora", [0, 1])
    found = claims(made.results()).set_index("claim").evidence
    said = found["LoRA validates better than full fine-tuning"]
    assert "on these validation examples: another validation split could say otherwise" in said
    assert said.endswith("; lora: 2 of 4 confirm trials failed")
