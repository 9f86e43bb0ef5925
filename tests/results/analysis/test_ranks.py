from __future__ import annotations

from functools import reduce
from operator import add

import pytest
from made_up import make_up
from scipy import stats

from results.analysis import ranks
from results.report.across import ranks_note


def test_ranks_are_averaged_and_the_critical_difference_is_nemenyis() -> None:
    # Demšar 2006, section 3.2.2: four methods on fourteen data sets have a critical difference of 1.25.
    accuracies = [
        {"a": 0.5 + 0.002 * number, "b": 0.6, "c": 0.7 if number % 2 else 0.55, "d": 0.8}
        for number in range(14)
    ]
    made = [
        make_up(f"experiment-{number}", accuracy, trials=1, seeds=2, examples=500)
        for number, accuracy in enumerate(accuracies)
    ]
    table = ranks(reduce(add, made).results()).set_index("method")
    assert table.critical_difference.iloc[0] == pytest.approx(1.25, abs=0.005)
    assert table.average_rank.to_dict() == pytest.approx({"a": 4.0, "b": 2.5, "c": 2.5, "d": 1.0})
    # Friedman's statistic by its formula: 12N/(k(k+1)) [sum R^2 - k(k+1)^2/4].
    statistic = 12 * 14 / 20 * (4**2 + 2 * 2.5**2 + 1 - 4 * 25 / 4)
    assert table.friedman_p.iloc[0] == pytest.approx(stats.chi2.sf(statistic, 3))
    assert table.not_shown_worse.to_dict() == {"a": False, "b": False, "c": False, "d": True}


def test_only_methods_that_all_experiments_confirmed_are_ranked() -> None:
    both = make_up("one") + make_up("other", {"full": 0.9, "lora": 0.8})
    assert set(ranks(both.results()).method) == {"full", "lora"}
    assert ranks(make_up("one").results()).empty
    assert ranks((make_up("one") + make_up("other", {"dora": 0.9})).results()).empty


def test_two_experiments_of_two_methods_prove_nothing() -> None:
    both = make_up("one", {"full": 0.9, "lora": 0.8}) + make_up("other", {"full": 0.9, "lora": 0.8})
    table = ranks(both.results()).set_index("method")
    assert table.average_rank.to_dict() == {"full": 1.0, "lora": 2.0}
    assert table.friedman_p.iloc[0] == pytest.approx(0.5)
    assert table.not_shown_worse.all()


def test_ties_say_nothing() -> None:
    made = [make_up(f"{number}", {"full": 0.9, "lora": 0.9}) for number in range(6)]
    for row in reduce(add, made).trials:
        row["test_accuracy"] = 0.9 if row["phase"] == "confirm" else None
    table = ranks(reduce(add, made).results())
    assert table.friedman_p.iloc[0] == 1
    assert table.not_shown_worse.all()
    three = [make_up(f"{number}", dict.fromkeys(("head", "full", "lora"), 0.9)) for number in range(6)]
    for row in reduce(add, three).trials:
        row["test_accuracy"] = 0.9 if row["phase"] == "confirm" else None
    assert ranks(reduce(add, three).results()).friedman_p.iloc[0] == 1


def test_of_too_few_experiments_no_method_can_be_shown_to_be_worse() -> None:
    accuracy = {"head": 0.5, "full": 0.85, "lora": 0.9, "dora": 0.91, "qlora": 0.92}
    made = [make_up(f"{number}", accuracy, seeds=2, examples=100) for number in range(10)]
    few, many = ranks(reduce(add, made[:2]).results()), ranks(reduce(add, made).results())
    assert few.critical_difference.iloc[0] > few.largest_lead.iloc[0] == 4
    assert "cannot be told with 2 experiments" in ranks_note(few)
    assert "cannot be told" not in ranks_note(many)
    # Of ten, the lead of 4 is above the critical difference of 1.93 (2.728 sqrt(5 * 6 / 60)).
    assert not many.set_index("method").not_shown_worse["head"]
