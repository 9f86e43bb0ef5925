"""The process that trains a trial: feeds it its inputs, passes on what it yields."""

from __future__ import annotations

import gc
import socket
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import ObjectRef, tune

from orchestrator import GARBAGE_THRESHOLD
from orchestrator.experiment import Assignment, Experiment, Phase
from orchestrator.prepare import Prepared
from orchestrator.scratch import Scratch
from orchestrator.secrets import redact
from orchestrator.settings import ResourceSettings
from orchestrator.shared_storage import check_directory
from orchestrator.shell import Driven, Failure, ProcessDiedError, Start, TrialShell
from orchestrator.states import read_state, save_state
from results.evaluation import Evaluation
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.measure import give_back_memory
from trainables.parallel import ALONE, Group
from trainables.setup import TrialSpec
from trainables.state import TrialState
from trainables.stretch import Course, Stretch
from trainables.trial import CPU, TrialInputs, failure_status, train_alone, trial_course


@dataclass(frozen=True)
class Inputs:
    """What workers read; the object store has it once, and they share that memory."""

    experiment: Experiment
    directory: Path  # of the run
    base: ObjectRef[BaseModel]
    data: ObjectRef[TokenizedData]
    test: ObjectRef[TokenizedSplit]

    @property
    def trainable(self) -> type[tune.Trainable]:
        """The Tune trainable of the workers that read them."""
        return tune.with_parameters(TrialWorker, inputs=self)


def share(experiment: Experiment, prepared: Prepared, directory: Path) -> Inputs:
    """Put what was prepared into the object store."""
    return Inputs(
        experiment, directory, ray.put(prepared.base), ray.put(prepared.data), ray.put(prepared.test)
    )


def trial_device(resources: ResourceSettings) -> torch.device:
    """Return the device that this worker trains on, and limit it to its part of a GPU's memory.

    A trial that needs more fails alone. The presence of a GPU decides nothing: Ray hides none from a worker
    that asks for none.

    Raises:
        RuntimeError: if the worker asks for a GPU, and PyTorch finds none.
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


def failure(error: Exception) -> Failure:
    """Return how a trial failed, and print the traceback.

    Raises:
        ProcessDiedError: if this process cannot train any more.
        OSError: ``error``, if it is one: another process may be able to use the storage.
    """
    if isinstance(error, ProcessDiedError | OSError):
        raise error
    print(redact("".join(traceback.format_exception(error))), flush=True)
    traceback.clear_frames(error.__traceback__)  # which hold tensors of the step that failed
    status, text = failure_status(error), f"{type(error).__name__}: {error}"
    if status == "failed" and isinstance(error, torch.AcceleratorError):
        raise ProcessDiedError(text) from error  # CUDA does no more work in this process
    return Failure(status, text)


@cache
def _freeze_imports() -> None:
    """Leave what exists now out of garbage collections: once, as a pack's later workers find its trials."""
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLD)


class TrialProcess:
    """Trains trials in a process, alone or as one of a group, in steps that a driver orders.

    The state is saved when the trial is told to continue. By then its last evaluation is in the journal, so
    the journal is never behind a state; a trial that is stopped saves nothing.

    Arguments:
        inputs: what it reads.
        group: the processes that train together.
    """

    course: Course  # of the trial, for a caller that trains it instead of :meth:`advance`

    def __init__(self, inputs: Inputs, group: Group = ALONE) -> None:
        _freeze_imports()
        self._inputs = inputs
        self._group = group
        self._device = trial_device(inputs.experiment.resources)
        self._base, self._data = ray.get(inputs.base), ray.get(inputs.data)
        self._scratch = Scratch(inputs.experiment.uri) if inputs.experiment.uri else None
        self._directory = self._scratch.directory if self._scratch else inputs.directory

    def begin(self, assignment: Assignment) -> Start:
        """Begin a trial, or continue it from its last state."""
        self._let_go()  # of the previous trial, whose memory is not this one's
        spec = self._inputs.experiment.trial_spec(assignment)
        if self._scratch:
            self._scratch.begin(spec.trial_id)
        state, damage = read_state(self._directory, spec)
        start = Start(state.progress.best[0] if state.progress.best else 0.0, damage)
        self.course = self._run(spec, state, assignment.phase)
        self._curve = train_alone(self.course)
        return start

    def _run(self, spec: TrialSpec, state: TrialState, phase: Phase) -> Course:
        directory, scratch = self._directory, self._scratch
        check_directory(directory)
        # The search never sees the test split.
        test = ray.get(self._inputs.test) if phase == "confirm" else None
        checkpoint = directory / "checkpoints" / spec.trial_id
        inputs = TrialInputs(
            spec, self._data, self._base, checkpoint, test, state, self._group, self._device, scratch
        )
        for item in trial_course(inputs):
            yield item
            if isinstance(item, Stretch):
                continue
            save_state(directory, spec, state, writes=self._group.rank == 0)
            if scratch and self._group.rank == 0:
                scratch.saved(spec.trial_id)

    def advance(self) -> Evaluation:
        """Save the trial's state, once it has one, and train until the next evaluation."""
        return next(self._curve)

    def close(self) -> None:
        """Let go of the trial, and of its memory."""
        self._let_go()
        if self._scratch:
            self._scratch.clear()

    def _let_go(self) -> None:
        self.course = self._curve = iter(())
        give_back_memory()


class TrialWorker(TrialShell):
    """A trial worker that trains in its own process."""

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], inputs: Inputs
    ) -> None:
        self._open(config, self._make_process(inputs))

    def _make_process(self, inputs: Inputs) -> Driven:
        return TrialProcess(inputs)

    def _advance(self) -> Evaluation | Failure:
        try:
            return self._process.advance()
        except Exception as error:
            return failure(error)
