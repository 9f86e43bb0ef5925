"""Budgets: every method may spend as much, and a cheap one gets more trials for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.budget import MethodBudgets
from orchestrator.reports import POINT
from orchestrator.settings import BudgetSettings
from results.evaluation import Evaluation


def point(examples: int, seconds: float = 0.0) -> Evaluation:
    names = Evaluation.__dataclass_fields__
    values = dict.fromkeys(names) | {"examples": examples, "train_seconds": seconds}
    return Evaluation(**values)  # type: ignore[arg-type]  # a budget looks at what it counts


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 50)), max_size=30))
def test_what_is_spent_is_each_trials_latest_sum(reports: list[tuple[str, int, int]]) -> None:
    budgets = MethodBudgets(BudgetSettings(examples=100))
    spent: dict[tuple[str, int], int] = {}
    for method, trial, more in reports:
        spent[method, trial] = spent.get((method, trial), 0) + more  # a trial reports its sum so far
        budgets.note(method, f"{method}-{trial}", {POINT: point(spent[method, trial])})
        for name in "ab":
            total = sum(value for (owner, _), value in spent.items() if owner == name)
            assert budgets.is_spent(name) == (total >= 100)


def test_seconds_of_training_can_be_what_counts() -> None:
    budgets = MethodBudgets(BudgetSettings(train_seconds=2.5))
    budgets.note("full", "full-000", {POINT: point(10**9, 2.4)})
    assert not budgets.is_spent("full")
    budgets.note("full", "full-001", {POINT: point(1, 0.1)})
    assert budgets.is_spent("full")
    assert not budgets.is_spent("lora")


def test_a_report_of_a_failure_costs_nothing() -> None:
    budgets = MethodBudgets(BudgetSettings(examples=1))
    budgets.note("full", "full-000", {"status": "failed"})
    assert not budgets.is_spent("full")


def test_one_kind_of_budget_at_a_time() -> None:
    with pytest.raises(ValidationError, match="both set; expected one of them"):
        BudgetSettings(examples=10, train_seconds=1)
