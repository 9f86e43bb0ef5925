"""What a trial reports. Code that only passes reports on imports them from here, and nothing that trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: str  # directory
    kind: str  # "adapter" or "full"
    bytes: int  # of all files in the directory
    sha256: str  # of the weights file


@dataclass(frozen=True)
class TestOutcome:
    """The best checkpoint, judged once on the test split."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # 0 to 1
    macro_f1: float  # 0 to 1
    seconds: float
    example_ids: NDArray[np.int64]  # [examples]; row of each example in its source
    labels: NDArray[np.int64]  # [examples]; true label indices
    logits: NDArray[np.float32]  # [examples, labels]


@dataclass(frozen=True)
class Evaluation:
    """One point on a trial's curve. Seconds and counts are totals since the trial's start."""

    evaluation: int  # 1, 2, ...
    step: int  # optimizer steps
    epoch: float
    examples: int  # trained examples
    tokens: int  # trained tokens without padding
    train_loss: float  # mean over the examples since the last evaluation
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    train_seconds: float
    evaluation_seconds: float
    setup_seconds: float
    peak_memory_bytes: int | None
    peak_memory_source: str | None  # "cuda_allocator" or "process_high_water"; null where neither can be read
    trainable_parameters: int
    total_parameters: int
    model_bytes: int  # parameters and buffers as loaded, with quantization state
    is_best: bool  # best validation accuracy so far; ties go to the lower validation loss, then the earlier
    is_last: bool
    checkpoint: Checkpoint | None  # the checkpoint written at this evaluation, if it is the best so far
    device: str  # such as "cpu" or "cuda:NVIDIA H200"
    test: TestOutcome | None = None  # with the last evaluation, where a test split was given

    @property
    def examples_per_second(self) -> float | None:
        """Trained examples per second of training; None before any time was measured."""
        return self.examples / self.train_seconds if self.train_seconds else None
