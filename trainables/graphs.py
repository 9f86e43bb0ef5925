"""Training steps as CUDA graphs: recorded once for each shape of batch, then launched as a whole.

A small model's step keeps a GPU busy for a fraction of the time that a CPU needs to launch its thousand
kernels. A graph is launched at once, on new contents of the same tensors (PyTorch's documentation, 'CUDA
semantics: CUDA Graphs').
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.optim import AdamW

from trainables.batches import Batch
from trainables.dropout import SHORT_TEXT

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
    """The training steps of one trial on the process's current GPU.

    Steps on long texts take longer to compute than to launch, and are taken as they are. So is a trial's
    first step, which allocates what all steps share, and every step of a model that cannot be recorded.

    Arguments:
        name: the trial's.
        optimizer: the trial's; nothing else may replace its parameters or its state after the first step.
        report: is told if the model cannot be recorded, and why.
    """

    def __init__(self, name: str, optimizer: AdamW, report: Callable[[str], None] = print) -> None:
        self._name = name
        self._optimizer = optimizer
        self._report = report
        self._can_record = True
        self._recorded: dict[tuple[int, ...], _Recorded] = {}  # by the shape of the batch
        self._stream: torch.cuda.Stream | None = None  # for recording; None before the first step

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
        """
        (group,) = self._optimizer.param_groups
        device = group["params"][0].device
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            self._rate = torch.zeros((), device=device)
            return update(batch.to(device))
        if not self._can_record or batch.input_ids.shape[1] > SHORT_TEXT:
            return update(batch.to(device))
        shape = tuple(batch.input_ids.shape)
        try:
            recorded = self._recorded.get(shape) or self._record(batch.to(device), update)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._can_record = False
            self._optimizer.zero_grad(set_to_none=True)
            reason = str(error).partition("\n")[0]
            self._report(f"{self._name} trains without CUDA graphs: its model cannot be recorded ({reason})")
            return update(batch.to(device))
        self._recorded[shape] = recorded
        recorded.batch.copy_(batch)
        self._rate.fill_(group["lr"])
        recorded.graph.replay()
        return recorded.loss.clone()  # the next replay overwrites it

    def _record(self, batch: Batch, update: Update) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        # One pool for all: between two steps nothing in it is needed.
        with self._reading_rate(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = update(batch)
        return _Recorded(graph, batch, loss)

    @contextmanager
    def _reading_rate(self) -> Iterator[None]:
        """Have the optimizer read its learning rate from a tensor, so that it is not part of a graph."""
        (group,) = self._optimizer.param_groups
        usual = {name: group[name] for name in ("lr", "capturable")}
        group.update(lr=self._rate, capturable=True)
        try:
            yield
        finally:
            group.update(usual)
