"""The most memory a trial can hold, found by running one on the longest examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.measure import peak_memory, shared_memory
from trainables.setup import TrialSpec
from trainables.trial import CPU, TrialInputs, run_trial

STEPS = 2
"""Optimizer steps of a probe: the first allocates AdamW's state, the second runs beside it."""


@dataclass(frozen=True)
class Peak:
    """What a trial's process held at its peak."""

    process_bytes: int | None  # of main memory, without shared memory; None where it cannot be read
    gpu_bytes: int = 0  # of a GPU, with the process's CUDA context; 0 on a CPU
    gpu_total_bytes: int = 0  # that GPU's memory


def probe(
    spec: TrialSpec, data: TokenizedData, test: TokenizedSplit, base: BaseModel, device: torch.device = CPU
) -> Peak:
    """Run a trial of two steps on the longest batch, checkpoint and test included; return what it held.

    Call it in a fresh process: what the process held before counts.

    Arguments:
        spec: a method's hungriest trial.
        data: the experiment's; the longest examples are taken from it.
        test: the test split; its longest examples are judged as in the confirm phase.
        base: the base model's shared weights.
        device: runs it; a GPU should be otherwise idle.
    """
    # With next to no learning rate a trial does not diverge, and holds as much.
    settings = {"epochs": STEPS, "evaluations_per_epoch": 1, "learning_rate": 1e-8}
    training = spec.training.model_copy(update=settings)
    longest = replace(
        data,
        train=longest_examples(data.train, training.batch_size),
        validation=longest_examples(data.validation, training.evaluation_batch_size),
    )
    judged = longest_examples(test, training.evaluation_batch_size)
    with TemporaryDirectory() as directory:
        short, best = replace(spec, training=training), Path(directory) / "best"
        for _ in run_trial(TrialInputs(short, longest, base, best, judged, device=device)):
            pass
    held, _ = peak_memory(CPU)
    process = None if held is None else held - shared_memory()
    return Peak(process, *_gpu_memory()) if device.type == "cuda" else Peak(process)


def longest_examples(split: TokenizedSplit, count: int) -> TokenizedSplit:
    """Return a split's ``count`` longest examples, or all where it has fewer."""
    return split.take(np.argsort(-split.lengths, kind="stable")[:count])


def _gpu_memory() -> tuple[int, int]:
    """Return this process's peak of GPU memory, and the GPU's total.

    What the allocator has reserved is unavailable to others, used or not. Anything else in use is this
    process's CUDA context and libraries, since a probe has its GPU to itself.
    """
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return torch.cuda.max_memory_reserved() + context, total
