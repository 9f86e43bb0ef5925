"""The Tune trainable: feeds a trial its inputs, reports what it yields."""

from __future__ import annotations

import gc
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import ObjectRef, tune
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled

from orchestrator import GARBAGE_THRESHOLD
from orchestrator.cluster import check_directory
from orchestrator.experiment import Assignment, Experiment, Phase, ResourceSettings
from orchestrator.prepare import Prepared
from orchestrator.reports import ASSIGNMENT, DAMAGE, ERROR, EVALUATION, OBJECTIVE, POINT, STATUS
from orchestrator.scratch import Scratch
from orchestrator.secrets import redact
from orchestrator.states import read_state, save_state
from results.hyperparameters import describe_hyperparameters
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.parallel import ALONE, Group
from trainables.state import Progress, TrialState
from trainables.trial import CPU, Evaluation, TrialSpec, failure_status, run_trial


@dataclass(frozen=True)
class Inputs:
    """What workers read, in the object store once: they share the memory."""

    experiment: Experiment
    directory: Path  # of the run
    base: ObjectRef[BaseModel]
    data: ObjectRef[TokenizedData]
    test: ObjectRef[TokenizedSplit]

    @property
    def trainable(self) -> type[tune.Trainable]:
        """The class of the workers that read them."""
        return tune.with_parameters(TrialWorker, inputs=self)


def share(experiment: Experiment, prepared: Prepared, directory: Path) -> Inputs:
    """Put what was prepared into the object store."""
    return Inputs(
        experiment, directory, ray.put(prepared.base), ray.put(prepared.data), ray.put(prepared.test)
    )


class ProcessDiedError(RuntimeError):
    """A process of a trial is gone; another one may go on from the trial's last state."""


@dataclass(frozen=True)
class Start:
    """Where a trial begins."""

    progress: Progress  # of the state it goes on from
    damage: str | None  # what is wrong with a state that it cannot go on from


class Driven(Protocol):
    """A trial's process, or several that are driven as one."""

    def begin(self, assignment: Assignment) -> Start:
        """Begin a trial, or go on with it from its last state."""

    def advance(self) -> Evaluation:
        """Save the trial's state, once it has one, and train until the next evaluation."""

    def close(self) -> None:
        """Let go of the trial."""


def trial_device(resources: ResourceSettings) -> torch.device:
    """Return what this worker of a trial trains on, and keep it to its part of a GPU's memory.

    One that takes more fails itself, and not the trials beside it. Ray hides no GPU from a worker that asks
    for none, so it does not matter whether there is one.
    """
    if not resources.gpus_per_trial:
        return CPU
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"resources.gpus_per_trial asks for {resources.gpus_per_trial:g}, and PyTorch {torch.__version__}"
            f" finds no GPU on {socket.gethostname()}; expected one, its driver and a CUDA build"
        )
    if resources.gpus_per_trial < 1:
        torch.cuda.set_per_process_memory_fraction(resources.gpus_per_trial)
    return torch.device("cuda")


class TrialProcess:
    """What drives a trial does in the process, or in each of the processes, that train it.

    Its state is saved when it is asked to go on, by when the evaluation before is journaled: a journal is
    never behind a state, and a trial that is stopped saves none.

    Arguments:
        inputs: what it reads.
        group: the processes that train together.
    """

    def __init__(self, inputs: Inputs, group: Group = ALONE) -> None:
        gc.freeze()  # what is here stays; what trials leave behind is looked for as ever
        gc.set_threshold(*GARBAGE_THRESHOLD)
        self._inputs = inputs
        self._group = group
        self._device = trial_device(inputs.experiment.resources)
        self._base, self._data = ray.get(inputs.base), ray.get(inputs.data)
        self._scratch = Scratch(inputs.experiment.uri) if inputs.experiment.uri else None
        self._directory = self._scratch.directory if self._scratch else inputs.directory

    def begin(self, assignment: Assignment) -> Start:
        """Begin a trial, or go on with it from its last state."""
        spec = self._inputs.experiment.trial_spec(assignment)
        if self._scratch:
            self._scratch.begin(spec.trial_id)
        state, damage = read_state(self._directory, spec)
        start = Start(state.progress, damage)
        self._curve = self._run(spec, state, assignment.phase)
        return start

    def _run(self, spec: TrialSpec, state: TrialState, phase: Phase) -> Iterator[Evaluation]:
        directory, scratch = self._directory, self._scratch
        check_directory(directory)
        # The search never sees the test split.
        test = ray.get(self._inputs.test) if phase == "confirm" else None
        checkpoint = directory / "checkpoints" / spec.trial_id
        inputs = (spec, self._data, self._base, checkpoint, test, state, self._group, self._device, scratch)
        for point in run_trial(*inputs):
            yield point
            save_state(directory, spec, state, writes=self._group.rank == 0)
            if scratch and self._group.rank == 0:
                scratch.saved(spec.trial_id)

    def advance(self) -> Evaluation:
        """Save the trial's state, once it has one, and train until the next evaluation."""
        return next(self._curve)

    def close(self) -> None:
        """Let go of the trial, and of its memory."""
        self._curve = iter(())
        if self._scratch:
            self._scratch.clear()


class TrialWorker(tune.Trainable):
    """Drive one trial after another in one process, one evaluation per step.

    A trial that raises ends with a result that carries its status and error, and the process stays
    warm for the next one. Where a process dies or cannot write, Tune starts another one, which goes on from
    the trial's last state.

    While it trains, its process is called ``ray::lora-003 rank 8, lr 0.0005``: the dashboard's list of a
    node's workers, ``ps`` and ``top`` show that. Its lines in the log begin with the trial's id. Ray takes
    down an actor's ``repr`` once, when it is made, so that says which trial was the worker's first.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], inputs: Inputs
    ) -> None:
        self._process = self._open(inputs)
        self._start(config)
        self._name = f"first trial: {self._title}"

    def _open(self, inputs: Inputs) -> Driven:
        return TrialProcess(inputs)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        self._process.close()

    def __repr__(self) -> str:
        return self._name

    def _start(self, config: dict[str, Any]) -> None:
        assignment = Assignment(**config[ASSIGNMENT])
        self._title = f"{assignment.trial_id} {describe_hyperparameters(assignment.hyperparameters)}"
        for stream in (sys.stdout, sys.stderr):
            print(f"{LOG_PREFIX_ACTOR_NAME}{assignment.trial_id}", file=stream, flush=True)
        start = self._process.begin(assignment)
        self._damage = start.damage
        self._best_accuracy = start.progress.best[0] if start.progress.best else 0.0

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self._title}")
        try:
            point = self._process.advance()
        except (ProcessDiedError, OSError):
            raise  # another process may have more luck, with this or with storage
        except Exception as error:
            self._process.close()
            print(redact(traceback.format_exc()), flush=True)
            status, text = failure_status(error), f"{type(error).__name__}: {error}"
            if status == "failed" and isinstance(error, torch.AcceleratorError):
                raise ProcessDiedError(text) from error  # CUDA does no further work for this process
            return {STATUS: status, ERROR: text, "done": True}
        self._best_accuracy = max(self._best_accuracy, point.validation_accuracy)
        damage, self._damage = self._damage, None
        return {
            POINT: point,
            **({DAMAGE: damage} if damage else {}),
            EVALUATION: point.evaluation,
            OBJECTIVE: self._best_accuracy,
            "done": point.is_last,
        }
