"""A trial that several processes train: workers of Ray Train, driven in step by one Tune trial."""

from __future__ import annotations

import asyncio
import os
import shutil
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from ray import tune
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import (
    PlacementGroupHandle,
    WorkerGroup,
    WorkerGroupContext,
)
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.experiment import Assignment, ResourceSettings
from orchestrator.worker import Inputs, ProcessDiedError, TrialProcess, TrialWorker
from trainables.parallel import Group
from trainables.state import Progress
from trainables.trial import Evaluation

GONE = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
"""What Ray Train says of a worker that it cannot reach."""


class MultiProcessTrialWorker(TrialWorker):
    """A trial worker that lets several processes train; it takes no resources itself."""

    def _open(self, inputs: Inputs) -> Ranks:
        return Ranks(inputs)


def placement(resources: ResourceSettings) -> tune.PlacementGroupFactory:
    """Say what Tune reserves for a trial: a bundle for each of its workers."""
    if resources.workers_per_trial == 1:
        return tune.PlacementGroupFactory([worker_resources(resources)])
    return tune.PlacementGroupFactory([{}, *[worker_resources(resources)] * resources.workers_per_trial])


def worker_resources(resources: ResourceSettings) -> dict[str, float]:
    """Say what each worker of a trial gets."""
    wanted = {
        "CPU": resources.cpus_per_trial,
        "GPU": resources.gpus_per_trial,
        "memory": resources.memory_per_trial or 0,
    }
    return {name: amount for name, amount in wanted.items() if amount}


class Ranks:
    """Several processes that are driven like the one :class:`TrialProcess` that each of them is.

    They stay for one trial after another. An error in one of them ends them all, and the next trial starts
    new ones.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._board: Any = None
        self._fit: Thread | None = None
        self._trial_id = ""

    def begin(self, assignment: Assignment, state: Path | None = None) -> Progress:
        if self._board is None:
            self._launch()
        self._trial_id = assignment.trial_id
        return self._order("begin", assignment, state)

    def advance(self) -> Evaluation:
        return self._order("advance")

    def save(self, directory: Path) -> None:
        # Rank 0 may be on another machine, which has the run directory, but not this one's temporary files.
        shared = self._inputs.directory / "ray" / "states" / self._trial_id
        self._order("save", shared)
        for file in shared.iterdir():
            shutil.move(file, directory / file.name)
        shared.rmdir()

    def close(self) -> None:
        if self._board is not None:
            ray.get(self._board.give.remote(None))
            assert self._fit is not None
            self._fit.join(timeout=10)
            self._board = None

    def _launch(self) -> None:
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        resources = self._inputs.experiment.resources
        self._board = Board.remote(resources.workers_per_trial)  # type: ignore[attr-defined]  # an actor
        trainer = TrialTrainer(
            partial(follow, self._inputs, self._board),
            scaling_config=ScalingConfig(
                num_workers=resources.workers_per_trial,
                use_gpu=resources.gpus_per_trial > 0,
                resources_per_worker=worker_resources(resources),
            ),
            run_config=RunConfig(storage_path=str(self._inputs.directory / "ray" / "train")),
        )
        self._fit = Thread(target=_fit, args=(trainer, self._board), daemon=True)
        self._fit.start()

    def _order(self, verb: str, *arguments: Any) -> Any:
        ray.get(self._board.give.remote((verb, arguments)))
        outcome = ray.get(self._board.outcome.remote())
        if isinstance(outcome, Exception):
            self._board = None
            raise outcome
        return outcome


def follow(inputs: Inputs, board: Any) -> None:
    """Do in one process what its driver orders, until there are no more orders."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    process = TrialProcess(inputs, Group(rank, size, inputs.experiment.resources.parallelism))
    while (order := ray.get(board.take.remote(rank))) is not None:
        verb, arguments = order
        outcome = getattr(process, verb)(*arguments)
        if rank == 0:
            ray.get(board.report.remote(outcome))


@ray.remote(num_cpus=0)
class Board:
    """Passes a driver's orders to every rank, and what came of them back."""

    def __init__(self, ranks: int) -> None:
        self._orders: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(ranks)]
        self._outcomes: asyncio.Queue[Any] = asyncio.Queue()

    async def give(self, order: Any) -> None:
        for orders in self._orders:
            orders.put_nowait(order)

    async def take(self, rank: int) -> Any:
        return await self._orders[rank].get()

    async def report(self, outcome: Any) -> None:
        self._outcomes.put_nowait(outcome)

    async def outcome(self) -> Any:
        return await self._outcomes.get()


def _fit(trainer: TorchTrainer, board: Any) -> None:
    """Run the workers till they end; where one fails, tell the driver, which waits for an outcome."""
    try:
        trainer.fit()
    except Exception as error:
        ray.get(board.report.remote(first_cause(error)))


def first_cause(error: Exception) -> Exception:
    """Return the error that a rank's own code raised, or a ``ProcessDiedError`` where a process is gone."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    gone = [failure for failure in failures if isinstance(failure, GONE) or _is_between_processes(failure)]
    return failures[0] if failures and not gone else ProcessDiedError(str(error))


def _is_between_processes(failure: Exception) -> bool:
    """Say whether an error is what one process has because another is gone."""
    return isinstance(failure, dist.DistError) or "gloo" in str(failure)


class _TrialsPlacement(DefaultPlacementGroupHandle):
    """The bundles that Tune reserved for the trial; they are Tune's to give back."""

    def shutdown(self) -> None:
        pass


class _WorkerGroup(WorkerGroup):
    """Workers in the trial's own bundles, where Ray Train would reserve as many again."""

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
    """A trainer whose workers take the place that Tune keeps for the trial which runs it."""

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        place = PlacementGroupSchedulingStrategy(_own_place())
        controller: Any = ray.remote(num_cpus=0)(_Controller).options(scheduling_strategy=place)
        running = controller.remote(**arguments)
        ray.get(running.run.remote())
        return ray.get(running.get_result.remote())
