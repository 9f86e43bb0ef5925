"""Intervals of means over seeds and test examples.

Training seeds and test examples vary, and are crossed: every trial of the confirm phase is judged on the
same examples, and all methods share their seeds. So a metric is averaged over both, and both are resampled
(a hierarchical bootstrap of crossed factors: Owen 2007, https://arxiv.org/abs/0711.0709).

By itself, that bootstrap is not honest with three or five seeds. It counts the interaction of seed and
example more than once, so intervals are too wide where examples dominate; and so few resampled seeds vary
too little, so intervals are too narrow where seeds dominate (``benchmarks/honesty.py`` measures both).
Its draws are therefore scaled to the standard error of the two-way analysis of variance, with Student's t
and Satterthwaite's degrees of freedom instead of the normal distribution: an expanded percentile interval
(Hesterberg 2015, https://arxiv.org/abs/1411.5279).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
BLOCK = 10_000_000
"""Most weights in memory at once."""

Floats = NDArray[np.floating]
Statistic = Callable[[Floats], Floats]
"""Maps weights of the examples ``[draws, examples]``, whose rows sum to 1, to a metric ``[draws, seeds]``."""


@dataclass(frozen=True)
class Sample:
    """A metric by seed, and its values on resampled examples."""

    values: Floats  # [seeds]
    draws: Floats | None = None  # [draws, seeds]; None if the metric does not depend on examples
    examples: int | None = None

    def __sub__(self, other: Sample) -> Sample:
        """Return the paired difference; both samples must have the same seeds and draws."""
        draws = self.draws - other.draws if self.draws is not None and other.draws is not None else None
        return Sample(self.values - other.values, draws, self.examples)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, for a true mean of 0
    seeds: int
    examples: int | None


def resample(statistics: dict[str, Statistic], examples: int, draws: int, seed: int) -> dict[str, Sample]:
    """Evaluate several statistics on the same resampled examples.

    Arguments:
        statistics: statistics by name.
        examples: number of examples.
        draws: number of resamplings.
        seed: seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    uniform = np.full((1, examples), 1 / examples)
    parts: dict[str, list[Floats]] = {name: [] for name in statistics}
    block = max(1, BLOCK // examples)
    for start in range(0, draws, block):
        count = min(block, draws - start)
        weights = generator.multinomial(examples, uniform[0], count) / examples
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return {
        name: Sample(statistic(uniform)[0], np.concatenate(parts[name]), examples)
        for name, statistic in statistics.items()
    }


def estimate(sample: Sample, seed: int = 0) -> Estimate:
    """Estimate the mean over seeds (and examples) with its interval and p-value.

    With one seed the interval covers the examples alone; with one seed and no examples it is NaN.
    """
    mean, seeds = float(sample.values.mean()), len(sample.values)
    error, freedom = standard_error(sample)
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, seeds, sample.examples)
    p_value = float(2 * stats.t.sf(abs(mean) / error, freedom))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    if sample.draws is None:
        return Estimate(mean, mean - reach, mean + reach, p_value, seeds, None)
    picks = np.random.default_rng(seed).integers(0, seeds, sample.draws.shape)
    joint = np.take_along_axis(sample.draws, picks, axis=1).mean(axis=1)
    deviations = np.quantile(joint - joint.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    spread = reach / (stats.norm.ppf((1 + LEVEL) / 2) * joint.std(ddof=1))
    low, high = mean + spread * deviations
    return Estimate(mean, float(low), float(high), p_value, seeds, sample.examples)


def standard_error(sample: Sample) -> tuple[float, float]:
    """Return the standard error of a sample's mean, and its degrees of freedom.

    With crossed seeds and examples the variance of the mean is V_s + V_e - V_se, where V_s comes from the
    seeds, V_e from the examples, and both include V_se, the interaction of seed and example
    (Cornfield and Tukey 1956). V_e and V_se are estimated from the resampled examples: for a single seed
    these vary by V_e + (seeds - 1) V_se.
    """
    seeds = len(sample.values)
    by_seeds = float(sample.values.var(ddof=1) / seeds) if seeds > 1 else 0.0
    if sample.draws is None or sample.examples is None:
        return (by_seeds**0.5, seeds - 1) if seeds > 1 else (float("nan"), float("nan"))
    by_examples = float(sample.draws.mean(axis=1).var(ddof=1))
    seed_by_seed = float(sample.draws.var(axis=0, ddof=1).mean())
    particular = max(0.0, (seed_by_seed - by_examples) / (seeds - 1)) if seeds > 1 else 0.0
    variance = by_examples + max(0.0, by_seeds - particular)
    if variance == 0:
        return 0.0, float(sample.examples - 1)
    terms = by_examples**2 / max(1, sample.examples - 1)
    terms += by_seeds**2 / (seeds - 1) if seeds > 1 else 0.0
    return variance**0.5, max(1.0, variance**2 / terms)
