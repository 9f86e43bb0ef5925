"""The intervals and verdicts are honest, on simulated experiments whose truth is known."""

from __future__ import annotations

import gc
from dataclasses import replace
from operator import sub

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.honesty import World, as_samples
from results.analysis.bootstrap import LEVEL, Sample, estimate, standard_error

WORLD = World(seeds=5, examples=400, seed_spread=0.1)
DRAWS = 400


def test_three_copies_of_a_method_are_told_apart_in_at_most_one_experiment_of_twenty() -> None:
    simulations = 400
    generator = np.random.default_rng(2)
    thresholds = [WORLD.threshold(0.8)] * 3
    told_apart = 0
    # Holm's correction collects garbage every time: not among all that other tests have imported.
    gc.freeze()
    for number in range(simulations):
        a, b, c = as_samples(WORLD.draw(generator, thresholds), DRAWS, number)
        found = [estimate(pair) for pair in (a - b, a - c, b - c)]
        told_apart += multipletests([one.p_value for one in found], method="holm")[0].any()
    gc.unfreeze()
    assert told_apart <= stats.binom.ppf(0.99, simulations, 0.05)


@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.3])
def test_intervals_cover_the_truth_at_the_rate_they_state(seed_spread: float) -> None:
    simulations = 1000
    world = World(seeds=5, examples=400, seed_spread=seed_spread)
    truth = 0.03
    thresholds = [world.threshold(0.8), world.threshold(0.8 - truth)]
    generator = np.random.default_rng(3)
    covered = 0
    for number in range(simulations):
        a, b = as_samples(world.draw(generator, thresholds), DRAWS, number)
        found = estimate(a - b)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / simulations <= 0.97


@pytest.mark.parametrize(("accuracy", "examples"), [(0.99, 50), (0.95, 50), (0.99, 300)])
@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_intervals_near_1_and_of_few_examples_cover_no_less_often(
    accuracy: float, examples: int, seeds: int
) -> None:
    simulations = 200
    world = World(seeds, examples, seed_spread=0.1, accuracy=accuracy)
    thresholds = [world.threshold(accuracy)] * 2
    generator = np.random.default_rng(6)
    alone = difference = told_apart = 0
    for number in range(simulations):
        a, b = as_samples(world.draw(generator, thresholds), 200, number)
        one, pair = estimate(a), estimate(a - b)
        alone += one.low <= accuracy <= one.high
        difference += pair.low <= 0 <= pair.high
        told_apart += pair.p_value < 0.05
        assert 0 <= one.low < one.high <= 1
        assert pair.low < pair.high
        assert (pair.p_value < 0.05) == (pair.low > 0 or pair.high < 0)
    fewest = stats.binom.ppf(0.001, simulations, 0.95)
    assert min(alone, difference) >= fewest
    assert told_apart <= simulations - fewest


@pytest.mark.parametrize("seeds", [2, 5])
def test_one_share_that_seeds_agree_on_has_agresti_and_coulls_interval(seeds: int) -> None:
    right = np.tile(np.arange(40) < 37, (seeds, 1)).astype(float)
    (sample,) = as_samples([right], 50_000, 0)
    found = estimate(sample)
    share, reach = 39 / 44, stats.t.ppf(0.975, 39) * (39 / 44 * 5 / 44 / 44) ** 0.5
    assert (found.low, found.high) == pytest.approx((share - reach, share + reach), abs=0.001)


def test_a_difference_that_seeds_agree_on_has_agresti_and_mins_interval() -> None:
    # 50 examples, of which only a gets 6 right, and only b 1.
    a, b = np.zeros((3, 50)), np.zeros((3, 50))
    a[:, :6], b[:, 6] = 1, 1
    found = estimate(sub(*as_samples([a, b], 50_000, 0)))
    only_a, only_b = 6.5 / 52, 1.5 / 52
    center, error = only_a - only_b, ((only_a + only_b - (only_a - only_b) ** 2) / 52) ** 0.5
    reach = stats.t.ppf(0.975, 49) * error
    assert (found.low, found.high) == pytest.approx((center - reach, center + reach), abs=0.001)
    assert found.mean == pytest.approx(0.1)


def test_a_planted_difference_is_found_at_the_rate_that_is_predicted() -> None:
    simulations, truth = 400, 0.03
    world = World(seeds=5, examples=1500, seed_spread=0.05)
    thresholds = [world.threshold(0.8), world.threshold(0.8 - truth)]
    generator = np.random.default_rng(4)
    # The standard error, from how estimates vary; its degrees of freedom, from what each experiment tells.
    means, freedoms, found = [], [], 0
    for number in range(simulations):
        a, b = as_samples(world.draw(generator, thresholds), 200, number)
        means.append(float((a - b).values.mean()))
        freedoms.append(standard_error(a - b)[1])
        found += estimate(a - b).p_value < 0.05
    predicted = power(truth, float(np.std(means, ddof=1)), float(np.median(freedoms)))
    assert 0.3 < predicted < 0.99, "a test of power needs one that is neither nothing nor all"
    error = (predicted * (1 - predicted) / simulations) ** 0.5
    assert abs(found / simulations - predicted) < 3 * error + 0.02


def power(difference: float, error: float, freedom: float) -> float:
    """Return the probability that a true difference is shown at the 5% level, by a noncentral t.

    Arguments:
        difference: the true one.
        error: standard error of the estimated one.
        freedom: its degrees of freedom.
    """
    critical = stats.t.ppf((1 + LEVEL) / 2, freedom)
    shift = difference / error
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def test_power_is_that_of_a_t_test() -> None:
    # Cohen 1988, table 2.4: one-sample, n = 20, effect 0.5 of a standard deviation, alpha 0.05: 0.56.
    assert power(0.5, 1 / 20**0.5, 19) == pytest.approx(0.565, abs=0.002)
    assert power(0.0, 1.0, 10) == pytest.approx(0.05)


def test_the_standard_error_is_that_of_the_analysis_of_variance() -> None:
    generator = np.random.default_rng(5)
    table = generator.normal(0, 1, (6, 200)) + generator.normal(0, 0.3, (6, 1)) + generator.normal(0, 1, 200)
    seeds, examples = table.shape
    sample = replace(as_samples([table], 20_000, 0)[0], added=())
    # Mean squares of the two-way layout, computed directly.
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    by_seeds = examples * ((rows - grand) ** 2).sum() / (seeds - 1)
    by_examples = seeds * ((columns - grand) ** 2).sum() / (examples - 1)
    rest = table - rows[:, None] - columns[None] + grand
    residual = (rest**2).sum() / ((seeds - 1) * (examples - 1))
    expected = ((by_seeds + by_examples - residual) / (seeds * examples)) ** 0.5
    assert standard_error(sample)[0] == pytest.approx(expected, rel=0.03)


def test_without_examples_it_is_the_t_test() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.35])
    found = estimate(Sample(values))
    expected = stats.ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_no_difference_at_all_is_no_difference() -> None:
    found = estimate(Sample(np.zeros(3), np.zeros((100, 3)), 50))
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
