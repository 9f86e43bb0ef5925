"""The default search space of each kind of method.

Learning rates span about two orders of magnitude around the published default, wide enough to contain the
best one for small and for large models. The three low-rank methods share one space, so that none is tuned
better than another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

Space = Mapping[str, BaseDistribution]

LOW_RANK: Final[Space] = {
    "rank": CategoricalDistribution((2, 4, 8, 16, 32, 64)),
    "alpha": CategoricalDistribution((4, 8, 16, 32, 64)),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}

DEFAULT_SPACES: Final[Mapping[str, Space]] = {
    "head": {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)},
    "full": {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True)},
    "lora": LOW_RANK,
    "dora": LOW_RANK,
    "qlora": LOW_RANK,
}


def default_space(kind: str) -> Space:
    """Return the default space of a kind; for a kind without one, only the learning rate is searched."""
    return DEFAULT_SPACES.get(kind, {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True)})
