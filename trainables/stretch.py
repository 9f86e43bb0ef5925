"""The training between two evaluations of a trial, which the trial's driver carries out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from results.evaluation import Evaluation
from trainables.batches import Batch
from trainables.measure import Stopwatch, large_blocks_apart
from trainables.parallel import total
from trainables.settings import TrainingSettings
from trainables.training import Trained, train_step


@dataclass
class Stretch:
    """The training due before a trial's next evaluation, and its totals so far."""

    trained: Trained
    batches: Iterator[Batch]  # one per step, until the evaluation
    settings: TrainingSettings
    dtype: torch.dtype  # to compute in
    examples: int = 0
    tokens: int = 0  # without padding
    seconds: float = 0.0
    _loss_sum: torch.Tensor | float = field(default=0.0, repr=False)  # over this rank's examples

    def add(self, batch: Batch, loss: torch.Tensor) -> None:
        """Count a step taken on a batch, with its mean loss, a detached scalar."""
        self._loss_sum = self._loss_sum + loss * batch.size
        self.examples += batch.size
        self.tokens += batch.tokens

    def mean_loss(self) -> float:
        """Return the mean loss over the examples; all ranks must call it."""
        group, device = self.trained.group, self.trained.device
        loss_sum = total(torch.as_tensor(self._loss_sum, device=device), group, device)
        return loss_sum.item() / group.size / self.examples


Course = Iterator[Stretch | Evaluation]
"""The items of a :func:`trainables.trial.trial_course`: a stretch to train, an evaluation, and so on."""


def train(stretch: Stretch) -> None:
    """Take all steps of a stretch in order; the ranks of a group take them together."""
    watch = Stopwatch(stretch.trained.device)
    with watch.running(), stretch.trained.stream.active():
        for batch in stretch.batches:
            take_step(stretch, batch)
    stretch.seconds += watch.seconds


def take_step(stretch: Stretch, batch: Batch) -> None:
    """Take a step on a batch; dropout draws from torch's current random state."""
    with large_blocks_apart(stretch.settings.saves_memory):
        loss = train_step(stretch.trained, batch, stretch.settings, stretch.dtype)
    stretch.add(batch, loss)
