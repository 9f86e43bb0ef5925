from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import extremes, nearest, parse_distribution
from search_spaces.parsing import parse_names


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([4, 8], CategoricalDistribution((4, 8))),
        (16, CategoricalDistribution((16,))),
        ("1e-4", CategoricalDistribution((1e-4,))),
        ({"low": "1e-5", "high": "1e-3", "log": True}, FloatDistribution(1e-5, 1e-3, log=True)),
        ({"low": 2, "high": 8, "step": 2}, IntDistribution(2, 8, step=2)),
        ({"low": 2, "high": 8.5}, FloatDistribution(2, 8.5)),
        ([["a"], ["a", "b"]], CategoricalDistribution(("a", "a,b"))),
    ],
)
def test_values_become_distributions(value: object, expected: object) -> None:
    assert parse_distribution(value) == expected


def test_a_list_of_names_is_one_choice() -> None:
    assert parse_names(["a", "b"]) == CategoricalDistribution(("a,b",))


@pytest.mark.parametrize(
    "value",
    [[], {"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}, {"low": "x", "high": 1}],
)
def test_nonsense_is_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any sentence will do
        parse_distribution(value)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(low=st.integers(1, 50), width=st.integers(0, 50), step=st.integers(1, 7), value=st.floats(-100, 200))
def test_nearest_is_a_member(low: int, width: int, step: int, value: float) -> None:
    distributions: list[Any] = [
        IntDistribution(low, low + width, step=step),
        FloatDistribution(low, low + width, log=True),
        CategoricalDistribution((low, low + width)),
    ]
    for distribution in distributions:
        found = nearest(distribution, value)
        assert distribution._contains(distribution.to_internal_repr(found))
        ends = extremes(distribution)
        assert min(ends) <= found <= max(ends)


def test_no_limit_is_nearest_to_the_most() -> None:
    assert nearest(IntDistribution(2, 8), None) == 8
    assert nearest(CategoricalDistribution((2, None)), None) is None
