"""Training steps as CUDA graphs: recorded once for each shape of batch, then launched as a whole.

A small model's step keeps a GPU busy for a fraction of the time that a CPU needs to launch its thousand
kernels. A graph is launched at once, on new contents of the same tensors (PyTorch's documentation, 'CUDA
semantics: CUDA Graphs').
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Generic, TypeVar

import torch
from torch.optim import AdamW

from trainables.batches import Batch

MULTIPLE = 8
"""Batches on a GPU are padded to a multiple of it, in tokens, so that few graphs serve all."""

Update = Callable[[Batch], torch.Tensor]
"""Takes an optimizer step on a batch on the device; returns its mean loss, a detached scalar."""


Result = TypeVar("Result")


@dataclass(frozen=True)
class Recording(Generic[Result]):
    """Work of a GPU as a graph; its tensors are read and written again whenever it is launched."""

    graph: torch.cuda.CUDAGraph
    result: Result  # of the work, written anew by each launch


class Recorder:
    """Records work of a GPU, in memory that all recordings share: none needs it between two launches.

    Arguments:
        name: whose work it is.
        device: the GPU.
        report: is told if work cannot be recorded, and why.
    """

    def __init__(self, name: str, device: torch.device, report: Callable[[str], None]) -> None:
        self._name = name
        self._device = device
        self._report = report
        self._first: torch.cuda.CUDAGraph | None = None  # whose memory the others use
        self._stream, _ = _of_process(device)
        self.is_able = True

    def forget(self) -> None:
        """Let go of the memory, once all recordings have been let go of."""
        self._first = None

    def record(self, work: Callable[[], Result]) -> Recording[Result] | None:
        """Record work without doing it; if that is impossible, report why and never try again.

        Raises:
            torch.AcceleratorError: if it fails and leaves CUDA of no use in this process.
        """
        if not self.is_able:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with self._recording(graph):
                result = work()
        except torch.OutOfMemoryError:
            reason = "there is no memory for them"
        except torch.AcceleratorError as error:
            advice = "while a training step was recorded; resources.cuda_graphs: false does without"
            error.args = (f"{error} ({advice})",)
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        else:
            self._first = self._first or graph
            return Recording(graph, result)
        self.is_able = False
        self._report(f"{self._name} trains without CUDA graphs: {reason}")
        return None

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Record what the block does."""
        torch.cuda.synchronize(self._device)
        if self._first is None:
            torch.cuda.empty_cache()  # what the same work took when it was done without being recorded
        mode, collects = torch.cuda.get_sync_debug_mode(), gc.isenabled()
        gc.disable()  # a graph of an earlier trial must not be destroyed now
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._first.pool() if self._first else None)
                try:
                    # A model that waits for the device fails before it does, which would break the recording.
                    _set_sync_debug_mode("error")
                    yield
                finally:
                    _set_sync_debug_mode(mode)
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()


class StepGraphs:
    """The training steps of one trial.

    A trial's first step, which allocates what all steps share, is taken as it is. So is every step that
    cannot be recorded.

    Arguments:
        name: the trial's.
        optimizer: the trial's; nothing else may replace its parameters or its state after the first step.
        device: a GPU.
        report: is told if steps cannot be recorded, and why.
    """

    def __init__(
        self, name: str, optimizer: AdamW, device: torch.device, report: Callable[[str], None] = print
    ) -> None:
        (self._settings,) = optimizer.param_groups
        self._device = device
        self._recorder = Recorder(name, device, report)
        self._is_first = True
        self._recorded: dict[tuple[int, ...], tuple[Batch, Recording[torch.Tensor]]] = {}  # by batch's shape
        self._rate = torch.zeros((), device=device)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of batches, ``(examples, tokens)``, whose steps are recorded."""
        return list(self._recorded)

    def forget(self) -> None:
        """Let go of all graphs and of their memory; steps are recorded again when they are needed."""
        self._recorded.clear()
        self._recorder.forget()

    def step(self, batch: Batch, update: Update) -> torch.Tensor:
        """Take a step on a batch; return its mean loss, a detached scalar.

        Arguments:
            batch: on the CPU, and whole: of weight 1.
            update: the same at every step, but for the batch and the learning rate.
        """
        shape = tuple(batch.input_ids.shape)
        if shape not in self._recorded:
            own = batch.to(self._device)
            recording = None if self._is_first else self._record(own, update)
            self._is_first = False
            if recording is None:
                return update(own)
            self._recorded[shape] = own, recording
        own, recording = self._recorded[shape]
        own.copy_(batch)
        self._rate.fill_(self._settings["lr"])
        recording.graph.replay()
        return recording.result.clone()

    def _record(self, batch: Batch, update: Update) -> Recording[torch.Tensor] | None:
        # The learning rate is read from a tensor, so that it is not part of a graph.
        usual = {name: self._settings[name] for name in ("lr", "capturable")}
        self._settings.update(lr=self._rate, capturable=True)
        try:
            recording = self._recorder.record(partial(update, batch))
        finally:
            self._settings.update(usual)
        if recording is None:
            self.forget()
            for parameter in self._settings["params"]:
                parameter.grad = None
        return recording


@cache
def _of_process(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """Return the process's stream for recording, and a graph that it keeps.

    Libraries keep memory for each stream that they are used on. As long as there is a graph, beginning
    another one allocates nothing: running out of memory there would break the process.
    """
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        graph.capture_begin()
        torch.zeros((), device=device)
        graph.capture_end()
    return stream, graph


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        torch.cuda.set_sync_debug_mode(mode)
