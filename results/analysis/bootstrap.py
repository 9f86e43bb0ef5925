"""Intervals of means over seeds and test examples.

Training seeds and test examples vary, and are crossed: every trial of the confirm phase is judged on the
same examples, and all methods share their seeds. So a metric is averaged over both, and both could be
resampled (a bootstrap of crossed factors: Owen 2007, https://arxiv.org/abs/0711.0709).

By itself, that bootstrap is not honest with three or five seeds. It counts the interaction of seed and
example more than once, so intervals are too wide where examples dominate; and so few resampled seeds vary
too little, so intervals are too narrow where seeds dominate (``benchmarks/honesty.py`` measures both).
So only the examples are resampled, which gives their part of the variance of any metric; the two-way
analysis of variance adds the seeds' part. Interval and p-value both use Student's t with Satterthwaite's
degrees of freedom.

Where nearly all examples are right, the examples at hand say little or nothing of how examples vary. A share
is therefore estimated with a few more examples than there are (``ONE``, ``PAIRED``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
BLOCK = 10_000_000
"""Most weights in memory at once."""

Added = tuple[tuple[float, float], ...]
"""Examples that an estimate adds to those there are: values, from the least to the largest, and numbers."""

ONE: Added = ((0.0, 2.0), (1.0, 2.0))
"""Of one share: two wrong, two right (Agresti and Coull 1998, https://doi.org/10.2307/2685469)."""

PAIRED: Added = ((-1.0, 0.5), (0.0, 1.0), (1.0, 0.5))
"""Of a paired difference of shares: half an example for each way in which two methods can be right or wrong
(Agresti and Min 2005, https://doi.org/10.1002/sim.1781)."""

Floats = NDArray[np.floating]
Statistic = Callable[[Floats], Floats]
"""Maps weights of the examples ``[draws, examples]``, whose rows sum to 1, to a metric ``[draws, seeds]``."""


@dataclass(frozen=True)
class Sample:
    """A metric by seed, and its values on resampled examples."""

    values: Floats  # [seeds]
    draws: Floats | None = None  # [draws, seeds]; None if the metric does not depend on examples
    examples: int | None = None
    added: Added = ()  # of a share
    seeds: tuple[int, ...] | None = None  # which; None where they need no names

    def __sub__(self, other: Sample) -> Sample:
        """Return the paired difference on the seeds that both have; both must have the same draws."""
        if self.seeds is not None and other.seeds is not None and self.seeds != other.seeds:
            shared = [seed for seed in self.seeds if seed in other.seeds]
            return self.on(shared) - other.on(shared)
        draws = self.draws - other.draws if self.draws is not None and other.draws is not None else None
        added = PAIRED if self.added and other.added else ()
        return Sample(self.values - other.values, draws, self.examples, added, self.seeds)

    def on(self, seeds: Sequence[int]) -> Sample:
        """Return the part of some seeds."""
        assert self.seeds is not None
        places = [self.seeds.index(seed) for seed in seeds]
        draws = self.draws[:, places] if self.draws is not None else None
        return replace(self, values=self.values[places], draws=draws, seeds=tuple(seeds))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, for a true mean of 0; below 0.05 where the interval leaves 0 out
    seeds: int
    examples: int | None


def resample(
    statistics: dict[str, Statistic], examples: int, draws: int, seed: int, added: Added = ()
) -> dict[str, Sample]:
    """Evaluate several statistics on the same resampled examples.

    Arguments:
        statistics: statistics by name.
        examples: number of examples.
        draws: number of resamplings.
        seed: seed of the resampling.
        added: ``ONE`` if the statistics are shares.
    """
    generator = np.random.default_rng(seed)
    uniform = np.full((1, examples), 1 / examples)
    parts: dict[str, list[Floats]] = {name: [] for name in statistics}
    block = max(1, BLOCK // examples)
    for start in range(0, draws, block):
        count = min(block, draws - start)
        # How often each example is picked: what generator.multinomial draws, in a third of its time.
        picks = generator.integers(examples, size=(count, examples))
        picks += examples * np.arange(count)[:, None]
        weights = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape) / examples
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return {
        name: Sample(statistic(uniform)[0], np.concatenate(parts[name]), examples, added)
        for name, statistic in statistics.items()
    }


def estimate(sample: Sample) -> Estimate:
    """Estimate the mean over seeds (and examples) with its interval and p-value.

    With one seed the interval covers the examples alone; with one seed and no examples it is NaN.
    """
    seeds, nan = len(sample.values), float("nan")
    if not seeds:
        return Estimate(nan, nan, nan, nan, 0, sample.examples)
    mean = float(sample.values.mean())
    error, freedom = standard_error(sample)
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, seeds, sample.examples)
    center = _with_added(sample, 0.0)[0]
    p_value = float(2 * stdtr(freedom, -abs(center) / error))
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    low, high = center - reach, center + reach
    if sample.added:
        low, high = max(low, sample.added[0][0]), min(high, sample.added[-1][0])
    return Estimate(mean, low, high, p_value, seeds, sample.examples)


def standard_error(sample: Sample) -> tuple[float, float]:
    """Return the standard error of a sample's mean, and its degrees of freedom.

    With crossed seeds and examples the variance of the mean is V_s + V_e - V_se, where V_s comes from the
    seeds, V_e from the examples, and both include V_se, the interaction of seed and example
    (Cornfield and Tukey 1956). V_e and V_se are estimated from the resampled examples: for a single seed
    these vary by V_e + (seeds - 1) V_se. V_e of a share is estimated with the added examples.
    """
    seeds = len(sample.values)
    by_seeds = float(sample.values.var(ddof=1) / seeds) if seeds > 1 else 0.0
    if sample.draws is None or sample.examples is None:
        return (by_seeds**0.5, seeds - 1) if seeds > 1 else (float("nan"), float("nan"))
    resampled = float(sample.draws.mean(axis=1).var(ddof=1))
    seed_by_seed = float(sample.draws.var(axis=0, ddof=1).mean())
    particular = max(0.0, (seed_by_seed - resampled) / (seeds - 1)) if seeds > 1 else 0.0
    by_examples = _with_added(sample, resampled)[1]
    variance = by_examples + max(0.0, by_seeds - particular)
    if variance == 0:
        return 0.0, float(sample.examples - 1)
    terms = by_examples**2 / max(1, sample.examples - 1)
    terms += by_seeds**2 / (seeds - 1) if seeds > 1 else 0.0
    return variance**0.5, max(1.0, variance**2 / terms)


def _with_added(sample: Sample, by_examples: float) -> tuple[float, float]:
    """Return a sample's mean, and the part of its variance due to the examples, with the examples added."""
    mean = float(sample.values.mean())
    if not sample.added or sample.examples is None:
        return mean, by_examples
    there = sample.examples
    number = there + sum(count for _, count in sample.added)
    center = (there * mean + sum(value * count for value, count in sample.added)) / number
    squares = there**2 * by_examples + there * mean**2
    squares += sum(value**2 * count for value, count in sample.added)
    return center, squares / number**2 - center**2 / number
