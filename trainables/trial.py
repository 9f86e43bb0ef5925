"""One trial as a generator of evaluations. Whoever drives it decides what happens between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainables.base_model import BaseModel
from trainables.data import TokenizedData
from trainables.methods import MethodSettings
from trainables.settings import TrainingSettings


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's numbers besides the data, the base model and the device."""

    trial_id: str  # such as "lora-003"
    method: str  # the experiment's name for the method
    kind: str  # the method's kind, a key of trainables.methods.METHODS
    seed: int  # decides head and adapter initialization, data order and dropout
    settings: MethodSettings  # the method's own hyperparameters
    training: TrainingSettings
    threads: int = 1  # torch threads on a CPU


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: str  # directory
    kind: str  # "adapter" or "full"
    bytes: int  # of all files in the directory
    sha256: str  # of the weights file


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


def run_trial(
    spec: TrialSpec, data: TokenizedData, base: BaseModel, checkpoint_directory: Path | None
) -> Iterator[Evaluation]:
    """Train one trial, yielding an evaluation ``evaluations_per_epoch`` times per epoch."""
    raise NotImplementedError
