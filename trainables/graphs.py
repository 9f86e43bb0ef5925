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
from functools import cache

import torch
from torch.optim import AdamW

from trainables.batches import Batch

MULTIPLE = 8
"""Batches on a GPU are padded to a multiple of it, in tokens, so that few graphs serve all."""

Update = Callable[[Batch], torch.Tensor]
"""Takes an optimizer step on a batch on the device; returns its mean loss, a detached scalar."""


@dataclass(frozen=True)
class _Recorded:
    """A step as a graph."""

    graph: torch.cuda.CUDAGraph
    batch: Batch  # its tensors are read by the graph
    loss: torch.Tensor  # written by the graph


class StepGraphs:
    """The training steps of one trial.

    A trial's first step, which allocates what all steps share, is taken as it is. So is every step where the
    model cannot be recorded, or memory does not suffice for it.

    Arguments:
        name: the trial's.
        optimizer: the trial's; nothing else may replace its parameters or its state after the first step.
        device: a GPU.
        report: is told if steps cannot be recorded, and why.
    """

    def __init__(
        self, name: str, optimizer: AdamW, device: torch.device, report: Callable[[str], None] = print
    ) -> None:
        self._name = name
        (self._settings,) = optimizer.param_groups
        self._device = device
        self._report = report
        self._is_first = True
        self._can_record = True
        self._recorded: dict[tuple[int, ...], _Recorded] = {}  # by the shape of the batch
        self._rate = torch.zeros((), device=device)
        self._stream, _ = _recorder(device)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of batches, ``(examples, tokens)``, whose steps are recorded."""
        return list(self._recorded)

    def forget(self) -> None:
        """Let go of all graphs and of their memory; steps are recorded again when they are needed."""
        self._recorded.clear()

    def step(self, batch: Batch, update: Update) -> torch.Tensor:
        """Take a step on a batch; return its mean loss, a detached scalar.

        Arguments:
            batch: on the CPU, and whole: of weight 1.
            update: the same at every step, but for the batch and the learning rate.

        Raises:
            torch.AcceleratorError: if recording fails and leaves CUDA of no use in this process.
        """
        shape = tuple(batch.input_ids.shape)
        if shape not in self._recorded:
            here = batch.to(self._device)
            recorded = self._record(here, update) if self._can_record and not self._is_first else None
            self._is_first = False
            if recorded is None:
                return update(here)
            self._recorded[shape] = recorded
        recorded = self._recorded[shape]
        recorded.batch.copy_(batch)
        self._rate.fill_(self._settings["lr"])
        recorded.graph.replay()
        return recorded.loss.clone()  # the next replay overwrites it

    def _record(self, batch: Batch, update: Update) -> _Recorded | None:
        """Record a step without taking it; if that cannot be done, report why."""
        graph = torch.cuda.CUDAGraph()
        try:
            with self._reading_rate(), self._recording(graph):
                loss = update(batch)
            return _Recorded(graph, batch, loss)
        except torch.OutOfMemoryError:
            reason = "there is no memory for them"
        except torch.AcceleratorError as error:
            advice = "while a training step was recorded; resources.cuda_graphs: false does without"
            error.args = (f"{error} ({advice})",)
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        self._can_record = False
        self.forget()
        for parameter in self._settings["params"]:
            parameter.grad = None
        torch.cuda.empty_cache()
        self._report(f"{self._name} trains without CUDA graphs: {reason}")
        return None

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Record what the block does on the device, in memory that all graphs share."""
        torch.cuda.synchronize(self._device)
        others = [one.graph for one in self._recorded.values()]
        if not others:
            torch.cuda.empty_cache()  # what the first step has used
        mode = torch.cuda.get_sync_debug_mode()
        collects = gc.isenabled()
        gc.disable()  # a graph of an earlier trial must not be destroyed now
        try:
            with torch.cuda.stream(self._stream):
                # None needs its memory between two steps.
                graph.capture_begin(pool=others[0].pool() if others else None)
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

    @contextmanager
    def _reading_rate(self) -> Iterator[None]:
        """Have the optimizer read its learning rate from a tensor, so that it is not part of a graph."""
        usual = {name: self._settings[name] for name in ("lr", "capturable")}
        self._settings.update(lr=self._rate, capturable=True)
        try:
            yield
        finally:
            self._settings.update(usual)


@cache
def _recorder(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
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
