"""Which method of an experiment to use, in a few sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import pandas as pd

from results.analysis.bootstrap import Sample, estimate
from results.analysis.compare import DRAWS, compare, count_failed, is_first_better
from results.analysis.metrics import (
    LOWER_IS_BETTER,
    OF_VALIDATION,
    ON_THIS_SPLIT,
    STATISTICS,
    amount,
    confirmed,
    failed_confirms,
    guessing,
    level,
    reach,
    samples,
    why_costs_mislead,
)

if TYPE_CHECKING:
    from results.loading import ResultSet

SAVINGS: Final = {
    "train_seconds": "trains fastest",
    "peak_memory_bytes": "needs the least memory",
    "model_bytes": "has the smallest model as loaded",
    "checkpoint_bytes": "has the smallest checkpoint",
}
"""Costs that decide between methods where the metric does not, and what is said of the cheapest."""

SIZES: Final = ("model_bytes", "checkpoint_bytes")
"""Costs that are the same wherever a trial runs."""

MATTERS: Final = 0.1
"""How much less a method must cost than the others for that to be said, as a fraction."""


def verdict(results: ResultSet, experiment: str, metric: str = "test_accuracy") -> str:
    """Say which method of an experiment to use, as far as its confirm phase shows.

    The method with the best mean is compared with all others that were confirmed, and with guessing. Of those
    not shown to be worse, it says which cost less, as far as that is shown. Means are over the confirm trials
    that did not fail; failed ones are counted in words.
    """
    return " ".join(_sentences(_Judged(results.of(experiment), experiment, metric)))


@dataclass(frozen=True)
class _Judged:
    """An experiment's confirm phase, by one metric."""

    results: ResultSet  # the experiment's alone
    experiment: str
    metric: str

    @cached_property
    def by_method(self) -> dict[str, Sample]:
        """Each confirmed method's values, the best method first."""
        found = samples(self.results, self.experiment, self.metric, DRAWS)
        sign = 1 if self.metric in LOWER_IS_BETTER else -1
        return dict(sorted(found.items(), key=lambda one: sign * float(one[1].values.mean())))

    @property
    def best(self) -> str:
        """The method with the best mean."""
        return next(iter(self.by_method))

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The best method's comparisons with the others, by their names and from the best to the worst."""
        pairs = _pairs_of(self.best, compare(self.results, self.metric))
        return pairs.loc[[name for name in self.by_method if name != self.best]]

    @cached_property
    def failed(self) -> dict[str, tuple[int, int]]:
        """Of each method of which a confirm trial failed, how many did and how many there are."""
        return failed_confirms(self.results, self.experiment)

    @cached_property
    def guess(self) -> tuple[str, float] | None:
        """The test split's most frequent label and what always answering it scores, if that can be said."""
        known = self.metric in ("test_accuracy", "test_macro_f1")
        return guessing(self.results, self.experiment, self.metric) if known else None

    @cached_property
    def doubtful(self) -> list[str]:
        """Methods that may be no better than always giving the most frequent label."""
        if self.guess is None:
            return []
        _, score = self.guess
        return [method for method, sample in self.by_method.items() if not estimate(sample).low > score]


def _sentences(judged: _Judged) -> Iterator[str]:
    if not judged.by_method:
        yield _not_compared(judged)
        yield from _list_failed(judged.failed)
        return
    if judged.guess and len(judged.doubtful) == len(judged.by_method):
        label, score = judged.guess
        scores = level(score, judged.metric)
        yield f"No method is shown to be better than always answering {label!r}, which scores {scores}."
    yield _leader(judged)
    if len(judged.by_method) > 1 and judged.pairs.seeds.max() == 1:
        yield "A single seed shows no difference: chance in training is not accounted for."
    if len(judged.by_method) > 1 and judged.metric in OF_VALIDATION:
        yield f"{ON_THIS_SPLIT.capitalize()}."
    yield from _against_guessing(judged)
    yield from _cheapest(judged)
    searched = judged.results.trials[judged.results.trials.phase == "search"].method.unique()
    if missing := [str(method) for method in searched if method not in judged.by_method]:
        yield f"Not confirmed, so not compared: {_list(missing)}."
    elif len(judged.by_method) == 1:
        yield "There is no other method to compare it with."
    yield from _list_failed({name: counts for name, counts in judged.failed.items() if name != judged.best})


def _not_compared(judged: _Judged) -> str:
    if confirmed(judged.results, judged.experiment).empty:
        return "Not confirmed: without test results, no method can be shown to be better than another."
    return f"Not compared: no {_words(judged.metric)} recorded for any confirmed method."


def _leader(judged: _Judged) -> str:
    """Say which method has the best mean, and how it does against the others."""
    most = "lowest" if judged.metric in LOWER_IS_BETTER else "highest"
    mean = level(estimate(judged.by_method[judged.best]).mean, judged.metric)
    said = f"{judged.best} has the {most} {_words(judged.metric)}: {mean}"
    if judged.best in judged.failed:
        count, tried = judged.failed[judged.best]
        said += f", but {count} of its {tried} confirm trials failed"
    return f"{said}." if len(judged.by_method) == 1 else f"{said}; as tuned here, it {_against(judged)}."


def _against(judged: _Judged) -> str:
    """Say how the best method does against each other."""
    beaten, beating, tied = [], [], []
    for name, pair in judged.pairs.iterrows():
        if not pair.different:
            tied.append(f"{name}{_reach(pair, judged.pairs.seeds.max())}")
        elif is_first_better(pair.difference, judged.metric) == (pair.method_a == judged.best):
            beaten.append(str(name))
        else:  # on the seeds of both; on all of its own it is worse
            beating.append(str(name))
    parts = []
    if beaten:
        parts.append(f"beats {_list(beaten)}")
    if tied:
        parts.append(f"shows no difference from {_list(tied)}")
    if beating:
        parts.append(f"is beaten on their common seeds by {_list(beating)}")
    return ", but ".join(parts)


def _reach(pair: pd.Series, most_seeds: int) -> str:
    """Say in brackets how large a difference may be that is not shown, or why that is unknown."""
    if pair.seeds > 1:
        return f" ({reach(pair.low, pair.high, pair.metric)})"
    return "" if most_seeds == 1 else f" ({'one' if pair.seeds else 'no'} seed in common)"


def _against_guessing(judged: _Judged) -> Iterator[str]:
    """Say what the most frequent label as the only answer scores, who may be no better, and who does that."""
    if judged.guess is None:
        return
    if len(judged.doubtful) < len(judged.by_method):
        label, score = judged.guess
        may = f"; {_list(judged.doubtful)} may be no better" if judged.doubtful else ""
        yield f"Always answering {label!r} scores {level(score, judged.metric)}{may}."
    answers = judged.results.predictions.groupby(["method", "trial_id"], sort=False).prediction.nunique()
    same = {method: answers[method] == 1 for method in judged.doubtful}
    counts = [f"{method} on {one.sum()} of {len(one)} seeds" for method, one in same.items() if one.any()]
    if counts:
        yield f"All examples get the same answer from {_list(counts)}."


def _cheapest(judged: _Judged) -> Iterator[str]:
    """Say which of the methods that are not shown to be worse costs less than all others of them."""
    if judged.metric not in STATISTICS or judged.best in judged.doubtful:
        return
    tied = [judged.best, *judged.pairs.index[~judged.pairs.different].difference(judged.doubtful, sort=False)]
    if len(tied) < 2:
        return
    savings = SAVINGS
    if why_costs_mislead(judged.results.trials):
        savings = {cost: words for cost, words in SAVINGS.items() if cost in SIZES}
    said: dict[str, list[str]] = {}
    for cost, words in savings.items():
        means = confirmed(judged.results, judged.experiment).groupby("method")[cost].mean().reindex(tied)
        if means.isna().any():
            continue
        winner = str(means.idxmin())
        if _is_shown_cheapest(judged, cost, winner, means):
            than = f" against {amount(means[judged.best], cost)}" if winner != judged.best else ""
            said.setdefault(winner, []).append(f"{words} ({amount(means[winner], cost)}{than})")
    if said:
        yield f"Of {_list(tied)}, {_list([f'{winner} {_list(parts)}' for winner, parts in said.items()])}."


def _is_shown_cheapest(judged: _Judged, cost: str, winner: str, means: pd.Series) -> bool:
    """Say whether a method costs less than some others, by as much as matters and more than by chance."""
    others = means.drop(winner)
    if not (means[winner] < (1 - MATTERS) * others).all():
        return False
    return bool(_pairs_of(winner, compare(judged.results, cost)).different[others.index].all())


def _pairs_of(method: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons of a method, by the others' names."""
    mine = pairs[(pairs.method_a == method) | (pairs.method_b == method)]
    return mine.set_index(mine.method_a.where(mine.method_b == method, mine.method_b))


def _list_failed(failed: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    for method, counts in failed.items():
        yield f"{method}: {count_failed(*counts)}."


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
