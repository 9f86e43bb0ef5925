"""Batches: padded to their own longest member and drawn from length buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data import TokenizedSplit

BUCKET_BATCHES = 50
"""Batches cut from one bucket: examples are shuffled, and sorted by length within this many batches only."""


@dataclass(frozen=True)
class Batch:
    """Examples padded to the longest of them."""

    input_ids: torch.Tensor  # [examples, longest] int64
    attention_mask: torch.Tensor  # [examples, longest] int64, 0 on padding
    labels: torch.Tensor  # [examples] int64
    positions: NDArray[np.int64]  # [examples]; where each stands in its split
    tokens: int  # without padding

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def batches(
    split: TokenizedSplit,
    batch_size: int,
    pad_token_id: int,
    generator: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Yield each example of a split once.

    With a ``generator``, in random order from length buckets (one epoch of training); without, longest
    first (evaluation).
    """
    for positions in batch_positions(np.diff(split.offsets), batch_size, generator):
        yield make_batch(split, positions, pad_token_id)


def batch_positions(
    lengths: NDArray[np.int64], batch_size: int, generator: np.random.Generator | None
) -> list[NDArray[np.int64]]:
    """Partition examples into batches of similar lengths; only the last-cut batch may be short."""
    if generator is None:
        return _cut(np.argsort(-lengths, kind="stable"), batch_size)
    order = generator.permutation(len(lengths))
    buckets = _cut(order, batch_size * BUCKET_BATCHES)
    cut = [
        batch
        for bucket in buckets
        for batch in _cut(bucket[np.argsort(lengths[bucket], kind="stable")], batch_size)
    ]
    return [cut[index] for index in generator.permutation(len(cut))]


def make_batch(split: TokenizedSplit, positions: NDArray[np.int64], pad_token_id: int) -> Batch:
    """Pad the examples at ``positions`` on the right."""
    starts = split.offsets[positions]
    lengths = split.offsets[positions + 1] - starts
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = split.tokens[(starts[:, None] + columns)[mask]]
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        labels=torch.from_numpy(split.labels[positions]),
        positions=positions,
        tokens=int(lengths.sum()),
    )


def _cut(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]
