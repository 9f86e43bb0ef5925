"""What Tune reserves for a trial, and whether there is room for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.nodes import Node
from orchestrator.settings import ResourceSettings
from orchestrator.wording import counted
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


def resource_problems(
    resources: ResourceSettings, nodes: Sequence[Node], to_come: Sequence[Node] = ()
) -> list[InputError]:
    """Return what trials ask for and nodes have no room for; a worker cannot span several nodes.

    Arguments:
        resources: that trials ask for.
        nodes: this machine, or the nodes of a cluster.
        to_come: all nodes that the autoscaler may start, those that are there included.
    """
    workers = resources.workers_per_trial
    room = max(sum(node.slots(resources) for node in some) for some in (nodes, to_come))
    if room >= workers:
        return []
    if room:
        asks = f"asks for {workers}, but there is room for {room}"
        return [InputError("resources.workers_per_trial", asks)]
    every = [*nodes, *to_come]
    owner = f"{every[0].name} has" if len(every) == 1 else f"the largest of {len(every)} nodes has"
    asked = {
        "cpus_per_trial": (resources.cpus_per_trial, max(node.cpus for node in every), ""),
        "gpus_per_trial": (resources.gpus_per_trial, max(node.gpus for node in every), ""),
        "memory_per_trial": (resources.memory_per_trial or 0, max(node.memory for node in every), " bytes"),
    }
    problems = [
        InputError(f"resources.{key}", f"asks for {wanted:.12g}{unit}, but {owner} {there:.12g}{unit}")
        for key, (wanted, there, unit) in asked.items()
        if wanted > there
    ]
    if problems:
        return problems
    known = dict.fromkeys(
        f"{node.name} {counted(node.cpus, 'CPU')}, {counted(node.gpus, 'GPU')}, {node.memory:.12g} bytes"
        for node in every
    )
    return [InputError("resources", f"no node has what one trial asks for; there are {'; '.join(known)}")]
