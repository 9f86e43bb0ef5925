"""Optuna distributions from YAML values."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

RANGE_KEYS = ("low", "high", "log", "step")


def parse_distribution(value: object) -> BaseDistribution:
    """Turn a YAML value into a distribution.

    ``[4, 8, 16]`` is a choice, ``{low: 1e-5, high: 1e-3, log: true}`` a range (of integers if both ends
    are integers), and anything else is a fixed value.

    In a choice between lists, ``[[c_attn], [c_attn, c_proj]]``, each list becomes a text joined with commas,
    since Optuna's choices must be plain values; :func:`split_names` reverses this.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(value, Mapping):
        return _range(value)
    if isinstance(value, list):
        if not value:
            raise ValueError("expected at least one choice, got an empty list")
        return CategoricalDistribution(tuple(_choice(item) for item in value))
    return CategoricalDistribution((_choice(value),))


def parse_names(value: object) -> BaseDistribution:
    """Turn the YAML value of ``target_modules`` into a distribution: ``[a, b]`` is one choice, not two."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return parse_distribution([value])
    return parse_distribution(value)


def split_names(value: object) -> object:
    """Turn ``"c_attn,c_proj"`` back into a list."""
    return value.split(",") if isinstance(value, str) else value


def extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    """Return both ends of a range, or every choice."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return (distribution.low, distribution.high)


def between(distribution: BaseDistribution) -> tuple[Any, ...]:
    """Return a value inside a range of real numbers that need not be whole, even if both ends are."""
    if not isinstance(distribution, FloatDistribution) or distribution.low == distribution.high:
        return ()
    distance = distribution.step or (distribution.high - distribution.low) / math.pi
    return (distribution.low + distance,)


def nearest(distribution: BaseDistribution, value: Any) -> Any:
    """Return the member of a distribution that is closest to ``value``, or else its first choice.

    None means no limit, to which the high end of a range is closest.
    """
    if isinstance(distribution, CategoricalDistribution):
        if value in distribution.choices:
            return value
        numbers = [choice for choice in distribution.choices if _is_number(choice)]
        if not numbers or not _is_number(value):
            return distribution.choices[0]
        return min(numbers, key=lambda choice: abs(choice - value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = distribution.high if value is None else value
    clipped = min(max(value, distribution.low), distribution.high)
    if distribution.step is None or distribution.step == 0:
        return clipped
    return distribution.low + round((clipped - distribution.low) / distribution.step) * distribution.step


def _range(value: Mapping[Any, Any]) -> BaseDistribution:
    unknown = [key for key in value if key not in RANGE_KEYS]
    if unknown or "low" not in value or "high" not in value:
        got = ", ".join(map(str, value)) or "nothing"
        raise ValueError(f"expected a range with low and high, and optionally log or step; got {got}")
    low, high = _number("low", value["low"]), _number("high", value["high"])
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"log: expected true or false, got {log!r}")
    if low > high:
        raise ValueError(f"low is above high: {low} > {high}")
    if log and low <= 0:
        raise ValueError(f"low: expected a number above 0 in a logarithmic range, got {low}")
    if log and step is not None:
        raise ValueError("expected log or step, got both")
    if step is not None and _number("step", step) <= 0:
        raise ValueError(f"step: expected a number above 0, got {step}")
    if isinstance(low, int) and isinstance(high, int):
        if step is not None and not isinstance(step, int):
            raise ValueError(f"step: expected an integer like low and high, got {step}")
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _number(name: str, value: object) -> int | float:
    parsed = _plain(value)
    if not _is_number(parsed) or not abs(parsed) <= sys.float_info.max:
        raise ValueError(f"{name}: expected a number, got {value!r}")
    number: int | float = parsed
    return number


def _choice(value: object) -> bool | int | float | str | None:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        raise ValueError("expected plain values as choices, got a mapping")
    return _plain(value)


def _plain(value: Any) -> Any:
    """Read ``1e-5`` as a number; YAML 1.1 reads it as text because it has no decimal point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
