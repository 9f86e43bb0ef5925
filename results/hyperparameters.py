"""Hyperparameters as people read them. Workers use this module, so it does not import the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from results.schema import HYPERPARAMETER_PREFIX

SHORT_NAMES = {"learning_rate": "lr"}


def describe_hyperparameters(values: Mapping[str, Any]) -> str:
    """Write ``rank 8, alpha 16, lr 0.0003``."""
    return ", ".join(f"{SHORT_NAMES.get(name, name)} {_short(value)}" for name, value in values.items())


def hyperparameters_of(row: pd.Series) -> dict[str, Any]:
    """Return a row's hyperparameters by name, the learning rate last, since all methods have it."""
    found = {
        name.removeprefix(HYPERPARAMETER_PREFIX): row[name]
        for name in row.index
        if name.startswith(HYPERPARAMETER_PREFIX) and not pd.isna(row[name])
    }
    return dict(sorted(found.items(), key=lambda pair: pair[0] == "learning_rate"))


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if value.is_integer() else f"{value:.3g}"
