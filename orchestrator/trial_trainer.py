"""Runs Ray Train's workers on what Tune has reserved for a trial; Ray Train would reserve as much again.

Ray Train 2.60 has no setting for that. Its controller imports this module, but nothing that trials need.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import (
    PlacementGroupHandle,
    WorkerGroup,
    WorkerGroupContext,
)
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class _TrialsPlacement(DefaultPlacementGroupHandle):
    """The bundles that Tune reserved for the trial; Tune releases them."""

    def shutdown(self) -> None:
        pass


class _WorkerGroup(WorkerGroup):
    """Workers in the trial's own bundles."""

    def _create_placement_group(
        self, scaling_config: ScalingConfig, worker_group_context: WorkerGroupContext
    ) -> PlacementGroupHandle:
        return _TrialsPlacement(_own_place())


def _own_place() -> PlacementGroup:
    place = get_current_placement_group()
    assert place is not None, "Tune places every trial"
    return place


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup


class TrialTrainer(TorchTrainer):
    """A trainer whose workers use what Tune has reserved for the trial that runs it."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        place = PlacementGroupSchedulingStrategy(_own_place())
        controller: Any = ray.remote(num_cpus=0)(_Controller).options(scheduling_strategy=place)
        running = controller.remote(**arguments)
        ray.get(running.run.remote())
        return ray.get(running.get_result.remote())
