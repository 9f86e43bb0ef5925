"""Training: plain functions over torch objects, shared by all methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

from trainables.batches import Batch
from trainables.dropout import SHORT_TEXT, Masks
from trainables.graphs import StepGraphs
from trainables.parallel import Group, without_exchange
from trainables.precision import computing_in
from trainables.settings import TrainingSettings


class RandomStream:
    """A torch random state of its own: nothing that runs before or in between changes its numbers."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        with keep_random_state(device):
            torch.manual_seed(seed)
            self.state = self._read()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this stream inside the block; leave torch's own state as it was."""
        with keep_random_state(self._device):
            torch.set_rng_state(self.state["cpu"])
            if "cuda" in self.state:
                torch.cuda.set_rng_state(self.state["cuda"], self._device)
            yield
            self.state = self._read()

    def _read(self) -> dict[str, torch.Tensor]:
        on_cuda = self._device.type == "cuda"
        cuda = {"cuda": torch.cuda.get_rng_state(self._device)} if on_cuda else {}
        return {"cpu": torch.get_rng_state(), **cuda}


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's own random state after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class Trained:
    """What changes while a trial trains."""

    model: nn.Module
    stepped: nn.Module  # takes the steps: the model, or a wrapper that averages its gradients over ranks
    optimizer: AdamW
    schedule: LRScheduler
    stream: RandomStream
    masks: Masks  # the model's dropout masks
    graphs: StepGraphs | None  # records steps; None where all are taken as they are
    device: torch.device
    group: Group  # the ranks it is spread over; all of them save and restore together


def make_optimizer(
    model: nn.Module, settings: TrainingSettings, total_steps: int
) -> tuple[AdamW, LRScheduler]:
    """Make AdamW over the trainable parameters (Loshchilov and Hutter 2019) with linear warm-up and decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    warmup_steps = math.ceil(settings.warmup_fraction * total_steps)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)


def forward(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 logits ``[examples, labels]``, computed in ``dtype``."""
    with computing_in(dtype, batch.input_ids.device), _attention(batch):
        logits: torch.Tensor = model(**batch.inputs).logits
    return logits.float()


def _attention(batch: Batch) -> AbstractContextManager[None]:
    """Avoid PyTorch's fused attention on a CPU where that multiplies small matrices in bfloat16.

    It makes oneDNN prepare again for each head of each text, which takes many times as long as multiplying.
    """
    device, tokens = batch.input_ids.device.type, batch.input_ids.shape[1]
    slow = device == "cpu" and tokens <= SHORT_TEXT and torch.get_float32_matmul_precision() != "highest"
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def train_step(
    trained: Trained, batch: Batch, settings: TrainingSettings, dtype: torch.dtype
) -> torch.Tensor:
    """Take one optimizer step on a batch; return its weighted mean loss, a detached scalar.

    Dropout draws from torch's current random state. Where a batch goes through the model in parts, their
    gradients add up to the batch's.
    """
    step = partial(_update, trained, settings=settings, dtype=dtype)
    loss = trained.graphs.step(batch, step) if trained.graphs else step(batch.to(trained.device))
    trained.schedule.step()
    return loss


def _update(trained: Trained, batch: Batch, settings: TrainingSettings, dtype: torch.dtype) -> torch.Tensor:
    """Take a step on a batch on the device, at the current learning rate."""
    parts = settings.parts(math.ceil(batch.size / trained.group.size))  # the same on every rank
    loss = torch.zeros((), device=trained.device)
    for turn, part in enumerate(cut(batch, parts, trained.masks), 1):
        with without_exchange(trained.stepped) if turn < parts else nullcontext():
            of_part = mean_loss(forward(trained.stepped, part, dtype), part)
            of_part.backward()
        loss = loss + of_part.detach()
        del of_part  # frees the graph before the next part builds its own
    # From the optimizer, which keeps a list: walking the model's modules takes as long as many kernels.
    parameters = [parameter for group in trained.optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
    trained.optimizer.step()
    trained.optimizer.zero_grad(set_to_none=True)
    return loss


def cut(batch: Batch, count: int, masks: Masks) -> Iterator[Batch]:
    """Yield a batch's parts, each with its own part of the masks drawn for the whole batch."""
    if count == 1:
        yield batch
        return
    texts, longest = batch.input_ids.shape
    with masks.of_parts(texts, longest, batch.input_ids.device) as turn_to:
        for rows, part in batch.parts(count):
            turn_to(rows)
            yield part


def mean_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``[examples, labels]``, times the batch's weight: a scalar."""
    return cross_entropy(logits, batch.labels) * batch.weight
