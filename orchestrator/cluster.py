"""The Ray cluster: this machine, or the one RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray
import torch

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment


@dataclass(frozen=True)
class Cluster:
    """What trials run on."""

    cpus: float
    gpus: float
    memory: float  # bytes for workers, the object store apart
    dashboard: str | None  # address of the Ray dashboard's page


def available_resources() -> tuple[float, float]:
    """Count this machine's CPUs and GPUs; a cluster's are not known before it is joined."""
    if os.environ.get("RAY_ADDRESS"):
        return float("inf"), float("inf")
    return float(os.cpu_count() or 1), float(torch.cuda.device_count())


def connect() -> Cluster:
    """Start Ray on this machine, or join the cluster RAY_ADDRESS names."""
    # What workers print comes here, and so to the run's log.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    context = ray.init(log_to_driver=True, logging_level=logging.ERROR)
    resources = ray.cluster_resources()
    dashboard = getattr(context, "dashboard_url", None)
    return Cluster(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory", 0.0),
        dashboard=f"http://{dashboard}" if dashboard else None,
    )


def slots(experiment: Experiment, cluster: Cluster) -> int:
    """Say how many trials run at once on a cluster.

    Raises:
        ExperimentError: if one asks for more memory than there is.
    """
    resources = experiment.resources
    fits = [int(cluster.cpus // resources.cpus_per_trial)]
    if resources.gpus_per_trial:
        fits.append(int(cluster.gpus / resources.gpus_per_trial + 1e-9))
    if resources.memory_per_trial is not None:
        if resources.memory_per_trial > cluster.memory:
            asked, there = resources.memory_per_trial / 1e9, cluster.memory / 1e9
            problem = f"asks for {asked:.2f} GB, but the cluster has {there:.2f} GB for workers"
            raise ExperimentError([f"resources.memory_per_trial: {problem}"])
        fits.append(int(cluster.memory // resources.memory_per_trial))
    if resources.max_concurrent is not None:
        fits.append(resources.max_concurrent)
    return max(1, min(fits))
