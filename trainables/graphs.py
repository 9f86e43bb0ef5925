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
from trainables.measure import is_out_of_memory

MULTIPLE = 8
"""Batches on a GPU are padded to a multiple of it, in tokens, so that few graphs serve all."""

Update = Callable[[Batch], torch.Tensor]
"""Takes an optimizer step on a batch on the device; returns its mean loss, a detached scalar."""

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Recording(Generic[Inputs, Result]):
    """Work of a GPU as a graph, which reads and writes the same tensors whenever it is launched."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    result: Result  # written anew by each launch


class Recorder:
    """Records work of a GPU, in memory that all its recordings share: none needs it between two launches.

    Arguments:
        name: whose work it is.
        device: the GPU.
        say: is told if work cannot be recorded, and why.
    """

    def __init__(self, name: str, device: torch.device, say: Callable[[str], None]) -> None:
        self._name = name
        self._device = device
        self._say = say
        self._first: torch.cuda.CUDAGraph | None = None  # whose memory the others use
        self._stream, _ = _of_process(device)
        self._is_able = True

    def forget(self) -> None:
        """Let go of the memory, once all recordings have been let go of."""
        self._first = None

    def record(
        self, make_inputs: Callable[[], Inputs], work: Callable[[Inputs], Result]
    ) -> Recording[Inputs, Result] | None:
        """Record work without doing it; if that is impossible, report why and never try again.

        Arguments:
            make_inputs: makes the tensors that the work reads; this is not recorded.
            work: must have been done before, on the same device.

        Raises:
            torch.AcceleratorError: if it fails and leaves CUDA of no use in this process.
        """
        if not self._is_able:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            inputs = make_inputs()
            with self._recording(graph):
                result = work(inputs)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if is_out_of_memory(error):
                reason = "there is no memory for them"
            elif isinstance(error, torch.AcceleratorError):
                self._is_able = False
                advice = "while a training step was recorded; resources.cuda_graphs: false does without"
                error.args = (f"{error} ({advice})",)
                raise
        else:
            self._first = self._first or graph
            return Recording(graph, inputs, result)
        self._is_able = False
        self._say(f"{self._name} trains without CUDA graphs: {reason}")
        return None

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Record what the block does."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # while work is recorded, PyTorch does not do it where memory runs out
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
        say: is told if steps cannot be recorded, and why.
    """

    def __init__(
        self, name: str, optimizer: AdamW, device: torch.device, say: Callable[[str], None] = print
    ) -> None:
        self._optimizer = optimizer
        self._device = device
        self._recorder = Recorder(name, device, say)
        self._is_first = True
        self._recorded: dict[tuple[int, ...], Recording[Batch, torch.Tensor]] = {}  # by the batch's shape
        self._rate = torch.zeros((), device=device)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of batches, ``(examples, tokens)``, whose steps are recorded."""
        return list(self._recorded)

    def forget(self) -> None:
        """Let go of all graphs and of their memory; the next step counts as the first."""
        self._recorded.clear()
        self._recorder.forget()
        self._is_first = True

    def step(self, batch: Batch, update: Update) -> torch.Tensor:
        """Take a step on a batch; return its mean loss, a detached scalar.

        Arguments:
            batch: on the CPU, and whole: of weight 1.
            update: the same at every step, but for the batch and the learning rate.
        """
        shape = tuple(batch.input_ids.shape)
        recording = self._recorded.get(shape)
        if recording is None:
            recording = None if self._is_first else self._record(batch, update)
            self._is_first = False
            if recording is None:
                return update(batch.to(self._device))
            self._recorded[shape] = recording
        recording.inputs.copy_(batch)
        (settings,) = self._optimizer.param_groups
        self._rate.fill_(settings["lr"])
        recording.graph.replay()
        return recording.result.clone()

    def _record(self, batch: Batch, update: Update) -> Recording[Batch, torch.Tensor] | None:
        (settings,) = self._optimizer.param_groups
        known = dict(self._optimizer.state)

        def take(batch: Batch) -> torch.Tensor:
            loss = update(batch)
            if len(self._optimizer.state) > len(known):  # each launch would begin its moments anew
                raise RuntimeError("a parameter has its first gradient after the first step")
            return loss

        # The learning rate is read from a tensor, so that it is not part of a graph.
        usual = {name: settings[name] for name in ("lr", "capturable")}
        settings.update(lr=self._rate, capturable=True)
        try:
            recording = self._recorder.record(partial(batch.to, self._device), take)
        finally:
            settings.update(usual)
        if recording is None:
            self.forget()
            self._optimizer.zero_grad(set_to_none=True)
            for parameter in self._optimizer.state.keys() - known.keys():
                del self._optimizer.state[parameter]
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
