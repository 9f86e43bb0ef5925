"""What a run would do, for ``--dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import Prepared
from orchestrator.settings import ResourceSettings
from search_spaces import extremes
from trainables.data import TokenizedData
from trainables.setup import ModelSummary, describe

if TYPE_CHECKING:
    from orchestrator.beginning import Beginning


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
    budget, seeds = experiment.budget, experiment.confirm.seeds
    lines = [
        *([f"budget of each method: {budget.limit:,g} {budget.unit}"] if budget.unit else []),
        *([f"then the best of each method is trained with {seeds} fresh seeds"] if seeds else []),
        *(fitted.lines if fitted else [_resources(experiment.resources)]),
        f"base model: {prepared.base.path}, {experiment.model.dtype}",
        *(f"{name}: {how}" for name, how in prepared.data.splits.items()),
        f"labels of train: {_label_shares(prepared.data)}",
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


def _resources(resources: ResourceSettings) -> str:
    each = f"{resources.cpus_per_trial:g} CPUs, {resources.gpus_per_trial:g} GPUs"
    workers = resources.workers_per_trial
    if resources.pack_size > 1:
        return f"each pack of {resources.pack_size} trials: {each}"
    return (
        f"each trial: {each}"
        if workers == 1
        else f"each trial: {workers} x ({each}), {resources.parallelism}"
    )


def _label_shares(data: TokenizedData) -> str:
    counts = np.bincount(data.train.labels, minlength=len(data.labels))
    return ", ".join(
        f"{label} {share:.0%}" for label, share in zip(data.labels, counts / len(data.train), strict=True)
    )


def _words(values: tuple[object, ...], distribution: object) -> str:
    if hasattr(distribution, "choices"):
        return " | ".join(map(str, values))
    return f"{values[0]:g} to {values[1]:g}" + (", log" if getattr(distribution, "log", False) else "")


def _range(low: float, high: float, unit: float, form: str) -> str:
    texts = dict.fromkeys(form.format(value / unit) for value in (low, high))
    return " to ".join(texts)
