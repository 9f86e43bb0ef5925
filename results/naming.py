"""Hyperparameters in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_NAMES = {"learning_rate": "lr"}


def describe_hyperparameters(values: Mapping[str, Any]) -> str:
    """Write ``rank 8, alpha 16, lr 0.0003``."""
    return ", ".join(f"{SHORT_NAMES.get(name, name)} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if value.is_integer() else f"{value:.2g}"
