"""``resources: auto``: tries every method's hungriest trial where trials will run, before any runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from orchestrator.cluster import Cluster
from orchestrator.errors import ExperimentError
from orchestrator.experiment import Assignment, Experiment
from orchestrator.fitting import LESS_MEMORY, MARGIN, fit
from orchestrator.nodes import Node, alive_nodes
from orchestrator.prepare import Prepared
from orchestrator.reservations import resource_problems
from orchestrator.wording import counted
from orchestrator.worker import Inputs, share
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.probe import Peak, probe
from trainables.setup import TrialSpec, describe
from trainables.trial import failure_status

LARGER_IS_HUNGRIER = ("rank", "batch_size", "micro_batch_size", "evaluation_batch_size", "dropout")
"""Hyperparameters that a trial's memory grows with; null is larger than any number."""


@dataclass(frozen=True)
class Fitted:
    """Measured memory, and the resources that follow from it."""

    experiment: Experiment  # with the resources that follow
    peaks: Mapping[str, Peak]  # by method
    at_once: int  # trials, on the cluster as it is

    @property
    def lines(self) -> list[str]:
        """What was measured and what follows, in words."""
        resources = self.experiment.resources
        peaks = [f"{method} {_words(peak)}" for method, peak in self.peaks.items()]
        asks = counted(resources.cpus_per_trial, "CPU")
        if resources.memory_per_trial is not None:
            asks += f", {resources.memory_per_trial / 1e9:.2f} GB of memory"
        if resources.gpus_per_trial:
            on_one = counted(int(1 / resources.gpus_per_trial), "trial")
            asks += f", {counted(resources.gpus_per_trial, 'GPU')} ({on_one} a GPU)"
        return [
            f"measured peaks: {', '.join(peaks)}",
            f"each trial asks for {asks}: what the hungriest method held and {MARGIN:.0%} more",
            f"trials at once: {self.at_once}",
        ]


def fit_resources(
    experiment: Experiment, prepared: Prepared, cluster: Cluster, say: Callable[[str], None]
) -> Fitted:
    """Measure every method's memory on the cluster, and set the experiment's resources from it.

    Arguments:
        experiment: with ``resources: auto``.
        prepared: what trials share.
        cluster: where they will run.
        say: is told of steps that take long.

    Raises:
        ExperimentError: naming the methods that do not fit or whose probe failed, or GPUs of several types.
    """
    everywhere = (*cluster.nodes, *cluster.to_come)
    _check_alike(everywhere)
    gpus = 1 if any(node.gpus for node in everywhere) else 0
    _check_room(_with(experiment, gpus_per_trial=gpus), cluster)
    say(f"resources: auto: measuring {', '.join(experiment.methods)}, each in a process of its own")
    peaks = _probe_all(share(experiment, prepared, experiment.run_directory), prepared, gpus)
    now = replace(cluster, nodes=alive_nodes())  # a node may have joined because a probe waited for it
    found = fit(peaks, max(node.memory for node in now.nodes))
    fitted = _with(experiment, auto=False, **asdict(found))
    _check_room(fitted, now)
    return Fitted(fitted, peaks, now.slots(fitted))


def _with(experiment: Experiment, **resources: Any) -> Experiment:
    changed = experiment.resources.model_copy(update=resources)
    return experiment.model_copy(update={"resources": changed})


def _check_room(experiment: Experiment, cluster: Cluster) -> None:
    if problems := resource_problems(experiment.resources, cluster.nodes, cluster.to_come):
        raise ExperimentError(*problems)


def _check_alike(nodes: Sequence[Node]) -> None:
    """Refuse GPUs of several types: all trials ask for one share of a GPU, and it is measured on one."""
    types = sorted({node.gpu_type for node in nodes if node.gpu_type})
    if len(types) > 1:
        raise ExperimentError(
            f"resources: auto: expected GPUs of one type, got {', '.join(types)}; set"
            " resources.gpus_per_trial to a share that is enough on the smallest of them"
        )


def _probe_all(inputs: Inputs, prepared: Prepared, gpus: int) -> dict[str, Peak]:
    """Probe one method after another, each on so many GPUs: two at once might not fit where one does."""
    experiment = inputs.experiment
    specs = {method: heaviest_trial(experiment, prepared.base, method) for method in experiment.methods}
    peaks: dict[str, Peak] = {}
    problems: list[str] = []
    for method, spec in specs.items():
        try:
            peaks[method] = _probe_apart(spec, inputs, gpus)
        except ExperimentError as error:
            problems += error.problems
    if problems:
        raise ExperimentError(*problems)
    return peaks


def heaviest_trial(experiment: Experiment, base: BaseModel, method: str) -> TrialSpec:
    """Return the trial of a method's search space that holds the most memory."""
    values = experiment.first_trial(method)
    for name in LARGER_IS_HUNGRIER:
        if known := experiment.values_of(method, name):
            values[name] = max(known, key=lambda value: math.inf if value is None else value)
    values["gradient_checkpointing"] = min(experiment.values_of(method, "gradient_checkpointing"))
    choices = experiment.values_of(method, "target_modules")
    trials = [{**values, "target_modules": choice} for choice in choices] or [values]
    specs = [experiment.trial_spec(Assignment(method, 0, trial)) for trial in trials]
    return max(specs, key=lambda spec: describe(base, spec.kind, spec.settings).trainable_parameters)


def _probe(spec: TrialSpec, data: TokenizedData, test: TokenizedSplit, base: BaseModel) -> Peak:
    """Probe in a process that has imported this module, and so all that a trial's worker imports."""
    on_gpu = ray.get_gpu_ids() and torch.cuda.is_available()
    return probe(spec, data, test, base, torch.device("cuda" if on_gpu else "cpu"))


def _probe_apart(spec: TrialSpec, inputs: Inputs, gpus: int) -> Peak:
    """Probe in a worker process of its own, which ends afterwards.

    Raises:
        ExperimentError: if the probe failed, saying how.
    """
    remote: Any = ray.remote(
        num_cpus=inputs.experiment.resources.cpus_per_trial,
        num_gpus=gpus,
        max_calls=1,
        max_retries=0,
    )(_probe)
    try:
        peak: Peak = ray.get(remote.remote(spec, inputs.data, inputs.test, inputs.base))
    except RayTaskError as error:
        ran_out = failure_status(error.cause) == "out_of_memory"
        fate, reason = ("ran out of memory" if ran_out else "failed"), error.cause
    except OutOfMemoryError as error:
        fate, reason = "ran out of memory", error
    except WorkerCrashedError as error:
        fate, reason = "lost its process, most likely for lack of memory,", error
    else:
        return peak
    told = f"{type(reason).__name__}: {reason}".strip().splitlines()[0]
    hint = "" if fate == "failed" else f"; {LESS_MEMORY}"
    raise ExperimentError(
        f"methods.{spec.method}: its hungriest trial {fate} when it was tried ({told}){hint}"
    )


def _words(peak: Peak) -> str:
    main = [] if peak.process_bytes is None else [f"{peak.process_bytes / 1e6:,.0f} MB"]
    return " and ".join(main + ([f"{peak.gpu_bytes / 1e6:,.0f} MB of GPU memory"] if peak.gpu_bytes else []))
