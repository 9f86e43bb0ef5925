"""The machines that trials run on, and how many fit on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import yaml
from ray._private.utils import get_num_cpus

from orchestrator.settings import ResourceSettings

GPU_TYPE = "accelerator_type:"
"""The prefix of the Ray resource that names the type of a node's GPUs."""

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves the cluster's configuration on the head."""


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, or one that the autoscaler would add."""

    name: str
    cpus: float
    gpus: float
    memory: float = math.inf  # bytes for workers, without the object store; infinite until Ray runs there
    gpu_type: str | None = None  # as Ray calls it, such as A100

    @classmethod
    def of(cls, name: str, resources: Mapping[str, float]) -> Node:
        """Describe a node from its resources, as Ray names them."""
        types = [key.removeprefix(GPU_TYPE) for key in resources if key.startswith(GPU_TYPE)]
        return cls(
            name,
            cpus=float(resources.get("CPU", 0)),
            gpus=float(resources.get("GPU", 0)),
            memory=float(resources.get("memory", math.inf)),
            gpu_type=types[0] if types else None,
        )

    def slots(self, resources: ResourceSettings) -> int:
        """Return how many workers of trials, or packs, the node has room for at once."""
        fits = [int(self.cpus / resources.cpus_per_trial + 1e-9)]
        if resources.gpus_per_trial:
            asked = resources.gpus_per_trial
            if asked < 1:  # a share of one GPU, never of two
                fits.append(int(self.gpus) * int(1 / asked + 1e-9))
            else:
                fits.append(int(self.gpus / asked + 1e-9))
        if resources.memory_per_trial is not None and self.memory < math.inf:
            fits.append(int(self.memory // resources.memory_per_trial))
        return min(fits)


def this_machine() -> Node:
    """Describe the machine that Ray will be started on."""
    # Counted as Ray does: a container may have fewer CPUs than the machine.
    return Node("this machine", float(get_num_cpus()), float(torch.cuda.device_count()))


def alive_nodes() -> tuple[Node, ...]:
    """Describe the nodes of the cluster that this process is connected to."""
    return tuple(
        Node.of(node["NodeManagerAddress"], {"memory": 0.0, **node["Resources"]})
        for node in ray.nodes()
        if node["Alive"]
    )


def node_types() -> tuple[Node, ...]:
    """Describe all nodes that the autoscaler may start, if this is the head of a ``ray up`` cluster."""
    file = BOOTSTRAP.expanduser()
    if not file.is_file():
        return ()
    types = yaml.safe_load(file.read_text()).get("available_node_types", {})
    return tuple(
        Node.of(name, kind["resources"])
        for name, kind in types.items()
        if kind.get("resources")
        for _ in range(kind.get("max_workers", 0))
    )


def trials_at_once(nodes: Sequence[Node], resources: ResourceSettings) -> int:
    """Return how many trials run at once on nodes: at least one, or one pack of them."""
    workers = sum(node.slots(resources) for node in nodes)
    fit = max(1, workers // resources.workers_per_trial) * resources.pack_size
    return min(fit, resources.max_concurrent or fit)
