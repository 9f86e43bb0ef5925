"""Whether the intervals of results.analysis are honest, on experiments whose truth is known.

    python -m benchmarks.honesty --simulations 1000

Each simulated experiment has two methods, some seeds and some test examples. An example is labelled correctly
when a latent score passes a threshold; the score is the sum of the example's difficulty and of effects of the
method on the example, of the method's seed, and of seed and example together. Prints, for the intervals of
results.analysis and for the plain percentile bootstrap, how often they cover the true difference of 0 (95%
asked), and so how often two copies of one method are told apart.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from results.analysis.bootstrap import ONE, Floats, Sample, estimate, resample


@dataclass(frozen=True)
class World:
    """A distribution of experiments. Spreads are standard deviations of the latent score."""

    seeds: int
    examples: int
    seed_spread: float  # of training seeds
    accuracy: float = 0.8
    example_spread: float = 1.5
    method_spread: float = 0.7  # of examples, particular to the method
    noise: float = 0.6  # scale of what is particular to seed and example (logistic)

    def threshold(self, accuracy: float) -> float:
        """Return the threshold that scores pass at this rate."""
        generator, count = np.random.default_rng(1), 1_000_000
        scores = generator.normal(
            0, np.hypot(np.hypot(self.example_spread, self.method_spread), self.seed_spread), count
        )
        return float(np.quantile(scores + generator.logistic(0, self.noise, count), 1 - accuracy))

    def draw(self, generator: np.random.Generator, thresholds: list[float]) -> list[Floats]:
        """Draw one experiment: for each method whether it is correct, [seeds, examples], 0 or 1."""
        difficulty = generator.normal(0, self.example_spread, self.examples)
        return [
            (
                difficulty
                + generator.normal(0, self.method_spread, self.examples)
                + generator.normal(0, self.seed_spread, (self.seeds, 1))
                + generator.logistic(0, self.noise, (self.seeds, self.examples))
                > threshold
            ).astype(float)
            for threshold in thresholds
        ]


def as_samples(outcomes: list[Floats], draws: int, seed: int) -> list[Sample]:
    """Resample an experiment's outcomes as results.analysis does."""
    statistics = {
        str(index): (lambda weights, right=right: weights @ right.T) for index, right in enumerate(outcomes)
    }
    return list(resample(statistics, outcomes[0].shape[1], draws, seed, ONE).values())


def plain_interval(sample: Sample, seed: int) -> tuple[float, float]:
    """Return the plain percentile interval of the hierarchical bootstrap."""
    assert sample.draws is not None
    picks = np.random.default_rng(seed).integers(0, len(sample.values), sample.draws.shape)
    joint = np.take_along_axis(sample.draws, picks, axis=1).mean(axis=1)
    low, high = np.quantile(joint, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    print(f"{options.simulations} experiments each, {options.draws} draws; coverage of 95% intervals")
    print("seeds  examples  seed spread   ours  plain percentile  width, points")
    for seeds in (3, 5):
        for examples in (300, 1000):
            for spread in (0.0, 0.1, 0.3):
                world = World(seeds, examples, spread)
                threshold = world.threshold(world.accuracy)
                generator = np.random.default_rng(0)
                ours = plain = 0
                width = 0.0
                for number in range(options.simulations):
                    a, b = as_samples(world.draw(generator, [threshold] * 2), options.draws, number)
                    found = estimate(a - b)
                    low, high = plain_interval(a - b, number)
                    ours += found.low <= 0 <= found.high
                    plain += low <= 0 <= high
                    width += 100 * (found.high - found.low) / options.simulations
                shares = f"{ours / options.simulations:6.1%}  {plain / options.simulations:16.1%}"
                print(f"{seeds:5}  {examples:8}  {spread:11}  {shares}  {width:13.1f}", flush=True)


if __name__ == "__main__":
    main()
