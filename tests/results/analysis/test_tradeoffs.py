from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_up

from results.analysis import hypervolume, pareto
from results.loading import ResultSet

DIRECTIONS: Any = {"validation_accuracy": "max", "train_seconds": "min"}


def trials_of(points: list[tuple[int, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["validation_accuracy", "train_seconds"]).astype(float)
    return frame.assign(experiment="e", phase="search", method="lora", status="completed")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_efficient_is_what_no_other_is_better_than(points: list[tuple[int, int]]) -> None:
    found = pareto(ResultSet.of_trials(trials_of(points)), DIRECTIONS, of="trials")
    for (accuracy, seconds), efficient in zip(points, found.efficient, strict=True):
        dominated = any(a >= accuracy and s <= seconds and (a, s) != (accuracy, seconds) for a, s in points)
        assert efficient == (not dominated)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=10))
def test_hypervolume_is_the_number_of_cells_that_are_dominated(points: list[tuple[int, int]]) -> None:
    found = hypervolume(trials_of(points), DIRECTIONS, {"validation_accuracy": 0, "train_seconds": 6})
    cells = {(a, s) for accuracy, seconds in points for a in range(accuracy) for s in range(seconds, 6)}
    assert found == pytest.approx(len(cells))


def test_each_experiment_has_its_own_front_and_methods_can_be_compared() -> None:
    both = (make_up("one") + make_up("other", {"full": 0.9, "lora": 0.8})).results()
    table = pareto(both, {"test_accuracy": "max", "peak_memory_bytes": "min"})
    assert table.set_index(["experiment", "method"]).efficient.to_dict() == {
        ("one", "head"): True,
        ("one", "full"): True,
        ("one", "lora"): True,
        ("other", "full"): True,
        ("other", "lora"): False,  # less accurate, and later in the list, which is larger
    }


def test_a_trial_that_failed_is_on_no_front() -> None:
    made = make_up(accuracy={"lora": 0.8}, seeds=0)
    made.trials[0] |= {"status": "diverged", "validation_accuracy": 0.99, "train_seconds": 0.1}
    found = pareto(made.results(), DIRECTIONS, of="trials")
    assert "lora-000" not in set(found.trial_id)
    assert found.efficient.any()


def test_a_trial_that_ended_early_is_cheap_for_that_reason_and_on_no_front() -> None:
    made = make_up(accuracy={"lora": 0.8}, seeds=0)
    made.trials[0] |= {"status": "stopped", "validation_accuracy": 0.99, "train_seconds": 0.1}
    made.trials[1] |= {"status": "running", "validation_accuracy": 0.99, "train_seconds": 0.1}
    found = pareto(made.results(), DIRECTIONS, of="trials").set_index("trial_id")
    assert found.efficient.to_dict() == {
        "lora-000": False,
        "lora-001": False,
        "lora-002": True,
        "lora-003": True,  # they would be dominated if those above counted
    }


def test_what_has_no_value_is_left_out_and_bad_names_are_refused() -> None:
    results = make_up(seeds=0).results()
    assert pareto(results, {"test_accuracy": "max", "model_bytes": "min"}).empty
    with pytest.raises(ValueError, match="'memory' is not a numeric column; expected some of"):
        pareto(results, {"memory": "min"})
    with pytest.raises(ValueError, match="expected max or min, got 'up'"):
        pareto(results, {"model_bytes": "up"})  # type: ignore[dict-item]
    assert hypervolume(trials_of([]), DIRECTIONS, {"validation_accuracy": 0, "train_seconds": 6}) == 0
