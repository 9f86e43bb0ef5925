"""Training and evaluation: plain functions over torch objects, shared by all methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_linear_schedule_with_warmup

from trainables.batches import Batch
from trainables.dropout import Masks
from trainables.errors import DivergedError
from trainables.inference import inference
from trainables.parallel import ALONE, Group, total, without_exchange
from trainables.settings import TrainingSettings

if TYPE_CHECKING:
    from trainables.features import Features

SHORT = 128
"""Tokens of texts so short that attention to all of them needs little memory."""


class RandomStream:
    """A torch random state of its own, so that nothing that runs before or between changes its numbers."""

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
    """Leave torch's own random state after the block as it was before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class Scores:
    """Outcome of an evaluation."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # 0 to 1
    macro_f1: float  # 0 to 1
    logits: NDArray[np.float32]  # [examples, labels], in the order of the split

    @property
    def merit(self) -> tuple[float, float]:
        """Larger is better: accuracy, then a lower loss."""
        return self.accuracy, -self.loss


def make_optimizer(
    model: nn.Module, settings: TrainingSettings, total_steps: int
) -> tuple[AdamW, LRScheduler]:
    """Make AdamW over the trainable parameters (Loshchilov and Hutter 2019) with linear warm-up and decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    warmup_steps = math.ceil(settings.warmup_fraction * total_steps)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)


def forward(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 logits ``[examples, labels]``, computed in ``dtype``: by autocast in bfloat16."""
    device = batch.input_ids.device.type
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16), _attention(batch):
        logits: torch.Tensor = model(**batch.inputs).logits
    return logits.float()


def _attention(batch: Batch) -> AbstractContextManager[None]:
    """Keep PyTorch from its fused attention on a CPU where that multiplies small matrices in bfloat16.

    It has oneDNN prepare anew for each head of each text, which takes many times as long as to multiply.
    """
    device, tokens = batch.input_ids.device.type, batch.input_ids.shape[1]
    slow = device == "cpu" and tokens <= SHORT and torch.get_float32_matmul_precision() != "highest"
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: AdamW,
    schedule: LRScheduler,
    max_gradient_norm: float,
    dtype: torch.dtype = torch.float32,
    parts: int = 1,
    masks: Masks | None = None,
) -> torch.Tensor:
    """Take one optimizer step on a batch and return its mean loss as weighted, a detached scalar.

    Arguments:
        model: to take it with.
        batch: to take it on.
        optimizer: has the model's trained parameters.
        schedule: of the optimizer.
        max_gradient_norm: gradients are clipped to this global L2 norm.
        dtype: to compute in.
        parts: in which the batch goes through the model; their gradients add up to the batch's.
        masks: what the model drops of the whole batch, to be cut like it.
    """
    loss = torch.zeros((), device=batch.labels.device)
    for turn, part in enumerate(cut(batch, parts, masks), 1):
        with without_exchange(model) if turn < parts else nullcontext():
            of_part = mean_loss(forward(model, part, dtype), part)
            of_part.backward()
        loss = loss + of_part.detach()
        del of_part  # and what its graph holds, before the next one's
    # Of the optimizer, who has a list: to ask a model for its parameters takes as long as many a kernel.
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(trained, max_gradient_norm)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def cut(batch: Batch, count: int, masks: Masks | None) -> Iterator[Batch]:
    """Yield a batch's parts, each when the model is to see it, and cut the masks of the whole alike."""
    if count == 1:
        yield batch
        return
    texts, longest = batch.input_ids.shape
    drawn = masks.of_parts(texts, longest, batch.input_ids.device) if masks else nullcontext()
    with drawn as turn_to:
        for rows, part in batch.parts(count):
            if turn_to:
                turn_to(rows)
            yield part


def mean_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``[examples, labels]``, as a batch weighs it: a scalar."""
    return cross_entropy(logits, batch.labels) * batch.weight


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    group: Group = ALONE,
    features: Features | None = None,
) -> Scores:
    """Evaluate a model in eval mode, without gradients; put it back in the mode it was in.

    Arguments:
        model: any sequence classification model.
        batches: each example of a split once; several ranks share them.
        labels: [examples] right label indices, in the order of the split.
        device: where the model is.
        dtype: to compute in.
        group: the ranks that evaluate it together; each gets the scores of the whole split.
        features: what is known already of a frozen base, if it is.

    Raises:
        DivergedError: if the loss is not finite.
    """
    was_training = model.training
    model.eval()
    logits: torch.Tensor | None = None
    try:
        with inference(model):
            for batch in batches:
                here = batch.to(device)
                rows = (features.logits(here, dtype) if features else forward(model, here, dtype)).cpu()
                logits = torch.zeros(len(labels), rows.shape[1]) if logits is None else logits
                if batch.weight:
                    logits[torch.from_numpy(batch.positions)] = rows
    finally:
        model.train(was_training)
    assert logits is not None, "a split has examples"
    return score(total(logits, group, device), labels)


def score(logits: torch.Tensor, labels: NDArray[np.int64]) -> Scores:
    """Compare logits ``[examples, labels]`` with the right labels ``[examples]``."""
    loss = cross_entropy(logits, torch.from_numpy(np.array(labels))).item()
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss became {loss}")
    predictions = logits.argmax(dim=1).numpy()
    return Scores(
        loss=loss,
        accuracy=float((predictions == labels).mean()),
        macro_f1=macro_f1(predictions, labels),
        logits=logits.numpy(),
    )


def macro_f1(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the unweighted mean of F1 = 2TP / (2TP + FP + FN) over the labels that occur on either side."""
    scores = []
    for label in np.union1d(predictions, labels):
        hits = np.sum((predictions == label) & (labels == label))
        scores.append(2 * hits / (np.sum(predictions == label) + np.sum(labels == label)))
    return float(np.mean(scores))
