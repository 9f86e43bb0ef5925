"""What Tune reserves for a trial, and whether there is room for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.nodes import Node
from orchestrator.settings import ResourceSettings
from trainables.errors import InputError

RAY_PARTS = 10_000
"""Ray counts resources in ten-thousandths."""


def trial_bundles(resources: ResourceSettings) -> list[dict[str, float]]:
    """Return what Tune reserves for a trial: a bundle for each of its workers, or its part of a pack's.

    If there are several workers, the first bundle is for the process that drives them, and is empty.
    """
    if resources.workers_per_trial == 1:
        whole, size = worker_resources(resources), resources.pack_size
        return [{name: _part(amount, size) for name, amount in whole.items()}]
    return [{}, *[worker_resources(resources)] * resources.workers_per_trial]


def _part(amount: float, size: int) -> float:
    """Divide a resource, rounded down to Ray's unit so that the parts fit into the whole."""
    return amount if size == 1 else math.floor(amount / size * RAY_PARTS) / RAY_PARTS


def worker_resources(resources: ResourceSettings) -> dict[str, float]:
    """Return what each worker of a trial gets, by Ray's names."""
    wanted = {
        "CPU": resources.cpus_per_trial,
        "GPU": resources.gpus_per_trial,
        "memory": resources.memory_per_trial or 0,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def check_resources(
    experiment: Experiment, nodes: Sequence[Node], where: str = "experiment", to_come: Sequence[Node] = ()
) -> None:
    """Refuse trials that nodes have no room for; a worker cannot span several nodes.

    Arguments:
        experiment: has the resources that trials ask for.
        nodes: this machine, or the nodes of a cluster.
        where: how messages name the source of the settings.
        to_come: all nodes that the autoscaler may start, those that are there included.

    Raises:
        ExperimentError: naming what is asked for and what there is.
    """
    resources, workers = experiment.resources, experiment.resources.workers_per_trial
    room = max(sum(node.slots(resources) for node in some) for some in (nodes, to_come))
    if room >= workers:
        return
    nodes = [*nodes, *to_come]
    owner = f"{nodes[0].name} has" if len(nodes) == 1 else f"the largest of {len(nodes)} nodes has"
    asked = {
        "cpus_per_trial": (resources.cpus_per_trial, max(node.cpus for node in nodes), ""),
        "gpus_per_trial": (resources.gpus_per_trial, max(node.gpus for node in nodes), ""),
        "memory_per_trial": (resources.memory_per_trial or 0, max(node.memory for node in nodes), " bytes"),
    }
    problems = [
        InputError(f"resources.{key}", f"asks for {wanted:.12g}{unit}, but {owner} {there:.12g}{unit}")
        for key, (wanted, there, unit) in asked.items()
        if wanted > there
    ]
    if room:
        problems = [
            InputError("resources.workers_per_trial", f"asks for {workers}, but there is room for {room}")
        ]
    elif not problems:
        known = dict.fromkeys(
            f"{node.name} {node.cpus:g} CPUs, {node.gpus:g} GPUs, {node.memory:.12g} bytes" for node in nodes
        )
        problems = [
            InputError("resources", f"no node has what one trial asks for; there are {'; '.join(known)}")
        ]
    raise ExperimentError([f"{where}: {problem}" for problem in problems])
