"""Evaluation: what a model scores on a split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from trainables.batches import Batch
from trainables.errors import DivergedError
from trainables.features import Features
from trainables.inference import inference
from trainables.parallel import ALONE, Group, total
from trainables.training import forward


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


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    group: Group = ALONE,
    features: Features | None = None,
) -> Scores:
    """Evaluate a model in eval mode, without gradients; restore its mode.

    Arguments:
        model: any sequence classification model.
        batches: each example of a split once, divided among the ranks.
        labels: [examples] true label indices, in the order of the split.
        device: where the model is.
        dtype: to compute in.
        group: the ranks that evaluate it together; each gets the scores of the whole split.
        features: remembers the head's inputs where the base is frozen.

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
    """Compare logits ``[examples, labels]`` with the true labels ``[examples]``."""
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
    """Return the unweighted mean of F1 = 2TP / (2TP + FP + FN) over the labels that occur in either array."""
    scores = []
    for label in np.union1d(predictions, labels):
        hits = np.sum((predictions == label) & (labels == label))
        scores.append(2 * hits / (np.sum(predictions == label) + np.sum(labels == label)))
    return float(np.mean(scores))
