"""Batches: padded to their own longest example and drawn from length buckets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise, repeat

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data import SEGMENTS, TokenizedSplit
from trainables.parallel import ALONE, Group

BUCKET_BATCHES = 50
"""Batches per bucket: examples are shuffled, then sorted by length only within this many batches."""


@dataclass(frozen=True)
class Batch:
    """Examples padded to one length."""

    input_ids: torch.Tensor  # [examples, longest] int64
    attention_mask: torch.Tensor  # [examples, longest] int64, 0 on padding
    labels: torch.Tensor  # [examples] int64
    positions: NDArray[np.int64]  # [examples]; index of each in its split
    size: int  # examples of the whole batch, of which this may be one rank's share
    tokens: int  # without padding, of the whole batch
    segments: torch.Tensor | None = None  # [examples, longest] int64, 1 in second texts
    weight: float = 1.0  # of its mean loss, so that the ranks' mean is the whole batch's; 0 for a filler

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The model's inputs, by name."""
        segments = {} if self.segments is None else {SEGMENTS: self.segments}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **segments}

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            segments=None if self.segments is None else self.segments.to(device, non_blocking=True),
        )

    def copy_(self, other: Batch) -> None:
        """Fill the batch's tensors with those of another of the same shape."""
        self.labels.copy_(other.labels, non_blocking=True)
        for name, tensor in self.inputs.items():
            tensor.copy_(other.inputs[name], non_blocking=True)

    def parts(self, count: int) -> Iterator[tuple[slice, Batch]]:
        """Yield ``count`` consecutive parts of the batch, each with the slice of examples it holds.

        Their weights add up to the batch's. An empty part holds the first example with weight 0, so that all
        ranks have the same number of parts.
        """
        examples = len(self.labels)
        for start, end in pairwise(examples * number // count for number in range(count + 1)):
            rows = slice(start, end) if end > start else slice(1)
            yield (
                rows,
                replace(
                    self,
                    input_ids=self.input_ids[rows],
                    attention_mask=self.attention_mask[rows],
                    labels=self.labels[rows],
                    segments=None if self.segments is None else self.segments[rows],
                    positions=self.positions[rows],
                    weight=self.weight * (end - start) / examples,
                ),
            )


def training_batches(
    split: TokenizedSplit,
    batch_size: int,
    pad_token_id: int,
    seed: int,
    start: int = 0,
    group: Group = ALONE,
    multiple: int = 1,
) -> Iterator[Batch]:
    """Yield this rank's share of a split's batches, epoch after epoch without end.

    Batches come from length buckets in random order. A rank without a share of a small batch gets an example
    with weight 0, as all ranks take every step.

    Arguments:
        split: what to train on.
        batch_size: examples of a batch.
        pad_token_id: the model's.
        seed: decides the order.
        start: how many batches to skip.
        group: the ranks.
        multiple: of tokens that batches are padded to, but not beyond the split's longest example.
    """
    generator, lengths, longest = np.random.default_rng(seed), split.lengths, split.longest
    epochs = (batch_positions(lengths, batch_size, generator) for _ in repeat(None))
    for positions in islice(chain.from_iterable(epochs), start, None):
        share = positions[group.rank :: group.size]
        examples = share if len(share) else positions[:1]
        width = min(math.ceil(lengths[examples].max() / multiple) * multiple, longest)
        yield replace(
            make_batch(split, examples, pad_token_id, width),
            size=len(positions),
            tokens=int(lengths[positions].sum()),
            weight=len(share) * group.size / len(positions),
        )


def batches(
    split: TokenizedSplit,
    batch_size: int,
    pad_token_id: int,
    group: Group = ALONE,
    most_tokens: float = math.inf,
) -> Iterator[Batch]:
    """Yield each example of a split once, longest first, for an evaluation; ranks take turns at the batches.

    All ranks get the same number: one that has none left gets the first batch again, with weight 0.

    Arguments:
        split: what to evaluate on.
        batch_size: the most examples of a batch.
        pad_token_id: the model's.
        group: the ranks.
        most_tokens: the most of a batch of several examples, padding included.
    """
    lengths = split.lengths
    cut = list(_cut_by_tokens(np.argsort(-lengths, kind="stable"), lengths, batch_size, most_tokens))
    for number in range(group.rank, math.ceil(len(cut) / group.size) * group.size, group.size):
        positions, weight = (cut[number], 1.0) if number < len(cut) else (cut[0], 0.0)
        yield replace(make_batch(split, positions, pad_token_id), weight=weight)


def batch_positions(
    lengths: NDArray[np.int64], batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Partition examples into batches of similar lengths, in random order; only one may be smaller."""
    order = generator.permutation(len(lengths))
    buckets = _cut(order, batch_size * BUCKET_BATCHES)
    cut = [
        batch
        for bucket in buckets
        for batch in _cut(bucket[np.argsort(lengths[bucket], kind="stable")], batch_size)
    ]
    return [cut[index] for index in generator.permutation(len(cut))]


def make_batch(
    split: TokenizedSplit, positions: NDArray[np.int64], pad_token_id: int, width: int | None = None
) -> Batch:
    """Pad the examples at ``positions`` on the right, to a width in tokens or that of the longest of them."""
    starts = split.offsets[positions]
    lengths = split.offsets[positions + 1] - starts
    columns = np.arange(lengths.max() if width is None else width)
    mask = columns < lengths[:, None]
    places = (starts[:, None] + columns)[mask]
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = split.tokens[places]
    segments = None
    if split.segments is not None:
        segments = np.zeros_like(ids)
        segments[mask] = split.segments[places]
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        labels=torch.from_numpy(split.labels[positions]),
        positions=positions,
        size=len(positions),
        tokens=int(lengths.sum()),
        segments=None if segments is None else torch.from_numpy(segments),
    )


def _cut(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _cut_by_tokens(
    positions: NDArray[np.int64], lengths: NDArray[np.int64], size: int, most_tokens: float
) -> Iterator[NDArray[np.int64]]:
    """Cut positions, longest example first, into batches of at most ``size`` examples and ``most_tokens``."""
    start = 0
    while start < len(positions):
        fit = max(1, int(min(size, most_tokens / max(1, lengths[positions[start]]))))
        yield positions[start : start + fit]
        start += fit
