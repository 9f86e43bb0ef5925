"""A trial that several processes train: workers of Ray Train, driven in step by one Tune trial."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from ray import cloudpickle as pickle
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from orchestrator.board import Board
from orchestrator.experiment import Assignment
from orchestrator.reservations import worker_resources
from orchestrator.shell import Failure, ProcessDiedError, Start
from orchestrator.trial_trainer import TrialTrainer
from orchestrator.worker import Inputs, TrialProcess, TrialWorker, failure
from results.evaluation import Evaluation
from trainables.errors import DivergedError
from trainables.parallel import Group

GONE = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
"""Ray Train's errors for a worker that it cannot reach."""


class MultiProcessTrialWorker(TrialWorker):
    """A trial worker that lets several processes train; it takes no resources itself."""

    _process: TrainWorkers

    def _make_process(self, inputs: Inputs) -> TrainWorkers:
        return TrainWorkers(inputs)

    def cleanup(self) -> None:
        self._process.end()


class TrainWorkers:
    """Several processes, each with a :class:`TrialProcess`, that are driven like a single one.

    They serve one trial after another, also after one that diverged. An error in one of them ends them all,
    and the next trial starts new ones.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._board: Any = None
        self._fit: Thread | None = None

    def begin(self, assignment: Assignment) -> Start:
        if self._board is not None:
            try:
                return self._order("begin", assignment)
            except ProcessDiedError:  # since the last trial
                pass
        self._launch()
        return self._order("begin", assignment)

    def advance(self) -> Evaluation | Failure:
        return self._order("advance")

    def close(self) -> None:
        if self._board is not None:
            self._order("close")

    def end(self) -> None:
        """End the processes."""
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
            run_config=RunConfig(storage_path=str(self._rays_directory() / "train")),
        )
        self._fit = Thread(target=_fit, args=(trainer, self._board), daemon=True)
        self._fit.start()

    def _rays_directory(self) -> Path:
        """Return where Ray Train keeps its files; only the driver has the directory of a run at a URI."""
        if self._inputs.experiment.uri:
            return Path(tempfile.gettempdir()) / f"ray-train-{os.getuid()}"
        return self._inputs.directory / "ray"

    def _order(self, verb: str, *arguments: Any) -> Any:
        ray.get(self._board.give.remote(pickle.dumps((verb, arguments))))
        outcome = pickle.loads(ray.get(self._board.outcome.remote()))
        if isinstance(outcome, Exception):
            self._board = None
            raise outcome
        return outcome


def follow(inputs: Inputs, board: Any) -> None:
    """Carry out the driver's orders in one of the processes, until there are no more."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if inputs.experiment.resources.gpus_per_trial:
        torch.cuda.set_device(ray.train.torch.get_device())
    process = TrialProcess(inputs, Group(rank, size, inputs.experiment.resources.parallelism))
    while (order := ray.get(board.take.remote(rank))) is not None:
        verb, arguments = pickle.loads(order)
        try:
            outcome = getattr(process, verb)(*arguments)
        except DivergedError as error:  # all ranks have the same loss, so they are still in step
            outcome = failure(error)
        if rank == 0:
            ray.get(board.report.remote(pickle.dumps(outcome)))


def _fit(trainer: TorchTrainer, board: Any) -> None:
    """Run the workers until they end; if one fails, tell the driver, which waits for an outcome."""
    try:
        trainer.fit()
    except Exception as error:
        ray.get(board.report.remote(pickle.dumps(first_cause(error))))


def first_cause(error: Exception) -> Exception:
    """Return the error that a rank's own code raised, or a ``ProcessDiedError`` if a process is gone."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    gone = [failure for failure in failures if isinstance(failure, GONE) or _is_between_processes(failure)]
    return failures[0] if failures and not gone else ProcessDiedError(str(error))


def _is_between_processes(failure: Exception) -> bool:
    """Say whether a process failed only because it lost contact with another."""
    return isinstance(failure, dist.DistError) or "gloo" in str(failure)
