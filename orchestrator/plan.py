"""What a run would do, for ``--dry-run``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.experiment import Assignment, Experiment
from orchestrator.notices import label_counts
from orchestrator.prepare import Prepared
from orchestrator.settings import BudgetSettings, ResourceSettings
from orchestrator.wording import counted
from search_spaces import extremes
from trainables.setup import ModelSummary, describe

if TYPE_CHECKING:
    from orchestrator.beginning import Beginning


Z_95 = 1.96
"""Standard errors on each side of a 95% interval."""


@dataclass(frozen=True)
class MethodPlan:
    """One method's part of the plan."""

    method: str
    trials: int
    smallest: ModelSummary  # at the smallest rank searched
    largest: ModelSummary  # at the largest
    space: str  # in words


def render(beginning: Beginning) -> Group:
    """Render the plan of a run, with what ``resources: auto`` has measured."""
    experiment, prepared, fitted = beginning.experiment, beginning.prepared, beginning.fitted
    table = Table(title=f"Plan of {experiment.name}: nothing has been run", title_justify="left")
    table.add_column("method")
    table.add_column("trials", justify="right")
    table.add_column("trainable parameters", justify="right")
    table.add_column("model MB", justify="right")
    table.add_column("search space", overflow="fold")
    for one in (_plan_method(experiment, prepared, method) for method in experiment.methods):
        table.add_row(
            one.method,
            "any" if experiment.budget.unit else str(one.trials),
            _range(one.smallest.trainable_parameters, one.largest.trainable_parameters, 1, "{:,.0f}"),
            _range(one.smallest.model_bytes, one.largest.model_bytes, 1e6, "{:,.1f}"),
            one.space,
        )
    data, seeds = prepared.data, experiment.confirm.seeds
    splits = {"train": data.train, "validation": data.validation, "test": prepared.test}
    lines = [
        *_budget(experiment.budget),
        *([f"then the best of each method is trained with {counted(seeds, 'fresh seed')}"] if seeds else []),
        _trials(experiment),
        *(fitted.lines if fitted else [_resources(experiment.resources)]),
        f"base model: {_base_model(prepared)}, {experiment.model.dtype}",
        *(f"{name}: {how}" for name, how in data.splits.items()),
        *(f"labels of {name}: {label_counts(split, data.labels)}" for name, split in splits.items()),
        *([_uncertainty(len(prepared.test))] if seeds else []),
        f"results would be in {experiment.location}",
    ]
    return Group(table, *map(Text, lines))


def _plan_method(experiment: Experiment, prepared: Prepared, method: str) -> MethodPlan:
    first = experiment.first_trial(method)
    ranks = experiment.values_of(method, "rank")
    ends = [{**first, "rank": rank} for rank in (min(ranks), max(ranks))] if ranks else [first]
    specs = [experiment.trial_spec(Assignment(method, 0, end)) for end in ends]
    smallest, *_, largest = 2 * [describe(prepared.base, spec.kind, spec.settings) for spec in specs]
    words = "; ".join(
        f"{name} {_words(extremes(one), one)}" for name, one in experiment.space(method).items()
    )
    return MethodPlan(method, experiment.search.trials, smallest, largest, words)


def _budget(budget: BudgetSettings) -> Iterator[str]:
    if budget.unit:
        unit, of = ("example", "") if budget.unit == "examples" else ("second", " of training")
        yield f"budget of each method: {counted(budget.limit, unit)}{of}"


def _trials(experiment: Experiment) -> str:
    """Say how many trials there will be."""
    methods, seeds = len(experiment.methods), experiment.confirm.seeds
    searched, confirmed = methods * experiment.search.trials, methods * seeds
    to_confirm = f", and {confirmed:,} to confirm" if confirmed else ""
    if experiment.budget.unit:
        return f"trials in all: as many as each budget allows{to_confirm}"
    return f"trials in all: {searched:,} in the search{to_confirm}"


def _base_model(prepared: Prepared) -> str:
    if prepared.base.settings.path == "embedded":
        return "the built-in one, a tiny GPT-2"  # its path is of a cache
    return prepared.base.path


def _uncertainty(examples: int) -> str:
    """Say how far chance moves an accuracy: at most as far as a coin's, 1.96 standard errors."""
    points = 100 * Z_95 * 0.5 / math.sqrt(examples)
    return (
        f"an accuracy measured on {counted(examples, 'test example')} is uncertain by up to {points:.1f}"
        " points either way (95%)"
    )


def _resources(resources: ResourceSettings) -> str:
    each = f"{counted(resources.cpus_per_trial, 'CPU')}, {counted(resources.gpus_per_trial, 'GPU')}"
    workers = resources.workers_per_trial
    if resources.pack_size > 1:
        return f"each pack of {resources.pack_size} trials: {each}"
    return (
        f"each trial: {each}"
        if workers == 1
        else f"each trial: {workers} x ({each}), {resources.parallelism}"
    )


def _words(values: tuple[object, ...], distribution: object) -> str:
    if hasattr(distribution, "choices"):
        return " | ".join(map(str, values))
    return f"{values[0]:g} to {values[1]:g}" + (", log" if getattr(distribution, "log", False) else "")


def _range(low: float, high: float, unit: float, form: str) -> str:
    texts = dict.fromkeys(form.format(value / unit) for value in (low, high))
    return " to ".join(texts)
