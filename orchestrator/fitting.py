"""The resources that each trial asks for, from measured memory: plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.errors import ExperimentError
from orchestrator.reservations import RAY_PARTS
from trainables.probe import Peak

MARGIN = 0.1
"""What is added to measured memory, as a fraction: allocators fragment, and a probe is short."""

MOST_PER_GPU = 64
"""The most trials on one GPU; from 110 on, a fraction rounded down to Ray's unit may let one more in."""


LESS_MEMORY = "set or lower training.micro_batch_size, or lower data.max_length or its largest rank"
"""Advice for a trial that needs too much."""


@dataclass(frozen=True)
class Fit:
    """What every trial asks for: enough for the hungriest method."""

    gpus_per_trial: float
    memory_per_trial: int | None  # bytes of main memory; None if it could not be measured


def fit(peaks: Mapping[str, Peak], node_memory: float) -> Fit:
    """Return what each trial must ask for, so that as many as fit share a GPU and a node's memory.

    All methods ask for the same: Tune gives a warm worker only to a trial that asks for as much as its last,
    and methods take turns, so every trial would otherwise start a new process.

    Arguments:
        peaks: measured peaks, by method.
        node_memory: bytes that the largest node has for workers.

    Raises:
        ExperimentError: naming the methods that a whole GPU or node has no room for.
    """
    problems = [
        problem for method, peak in peaks.items() for problem in _too_large(method, peak, node_memory)
    ]
    if problems:
        raise ExperimentError(*problems)
    held = [with_margin(peak.process_bytes) for peak in peaks.values() if peak.process_bytes is not None]
    shared_by = [per_gpu(peak.gpu_bytes, peak.gpu_total_bytes) for peak in peaks.values() if peak.gpu_bytes]
    return Fit(
        # Rounded down, so that as many fractions as trials fit into one GPU.
        gpus_per_trial=RAY_PARTS // min(shared_by) / RAY_PARTS if shared_by else 0.0,
        memory_per_trial=max(held) if held else None,
    )


def with_margin(held: int) -> int:
    """Return the bytes to reserve for a trial that held ``held`` bytes."""
    return math.ceil(held * (1 + MARGIN))


def per_gpu(held: int, total: int) -> int:
    """Return how many trials of ``held`` bytes share a GPU of ``total`` bytes."""
    return min(MOST_PER_GPU, total // with_margin(held))


def _too_large(method: str, peak: Peak, node_memory: float) -> Iterator[str]:
    asked = {
        "GPU memory, and a GPU": (peak.gpu_bytes, peak.gpu_total_bytes),
        "memory, and the largest node": (peak.process_bytes, node_memory),
    }
    for kind, (held, there) in asked.items():
        if held and with_margin(held) > there:
            yield (
                f"methods.{method}: a trial needs {with_margin(held) / 1e9:.2f} GB of {kind} has "
                f"{there / 1e9:.2f} GB; {LESS_MEMORY}"
            )
