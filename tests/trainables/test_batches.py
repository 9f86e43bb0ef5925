from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.batches import batch_positions, batches, training_batches
from trainables.data import TokenizedSplit
from trainables.parallel import ALONE, Group
from trainables.settings import TrainingSettings
from trainables.trial import CPU, evaluation_batches

PAD = 0
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300)


def make_split(counts: list[int]) -> TokenizedSplit:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    tokens.flags.writeable = False  # as it comes out of the object store
    rows = np.arange(len(counts))
    return TokenizedSplit(tokens, offsets, rows % 2, rows)


@settings(deadline=None)
@given(
    counts=lengths,
    size=st.integers(1, 32),
    seed=st.none() | st.integers(0, 5),
    multiple=st.sampled_from([1, 8]),
)
def test_an_epoch_holds_each_example_once_padded_to_its_batch(
    counts: list[int], size: int, seed: int | None, multiple: int
) -> None:
    split = make_split(counts)
    seen: list[int] = []
    short = 0
    epoch = batches(split, size, PAD)
    if seed is not None:
        endless = training_batches(split, size, PAD, seed, multiple=multiple)
        epoch = islice(endless, math.ceil(len(counts) / size))
    for batch in epoch:
        seen += batch.positions.tolist()
        short += len(batch.positions) < size
        sizes = [counts[position] for position in batch.positions]
        width = max(sizes)
        if seed is not None:
            width = min(math.ceil(width / multiple) * multiple, max(counts))
        assert batch.input_ids.shape == batch.attention_mask.shape == (len(sizes), width)
        assert batch.attention_mask.sum(dim=1).tolist() == sizes
        assert batch.tokens == sum(sizes)
        for row, position in enumerate(batch.positions):
            expected = split.tokens[split.offsets[position] : split.offsets[position + 1]].tolist()
            padding = [PAD] * (width - len(expected))
            assert batch.input_ids[row].tolist() == expected + padding
            assert batch.labels[row] == split.labels[position]
    assert sorted(seen) == list(range(len(counts)))
    assert short <= 1


@settings(deadline=None)
@given(counts=lengths, size=st.integers(1, 32), ranks=st.integers(1, 4), start=st.integers(0, 30))
def test_ranks_share_every_batch_and_weigh_as_much_as_it(
    counts: list[int], size: int, ranks: int, start: int
) -> None:
    split = make_split(counts)
    whole = islice(training_batches(split, size, PAD, 3), start, start + 5)
    shares = [training_batches(split, size, PAD, 3, start, Group(rank, ranks)) for rank in range(ranks)]
    for batch, *parts in zip(whole, *shares, strict=False):
        assert {(part.size, part.tokens) for part in parts} == {(batch.size, batch.tokens)}
        positions = [position for part in parts if part.weight for position in part.positions]
        assert sorted(positions) == sorted(batch.positions)
        # The mean over ranks of weighted means over examples is the mean over the batch's examples.
        means = [part.weight * split.labels[part.positions].mean() for part in parts]
        assert np.isclose(np.mean(means), split.labels[batch.positions].mean())


@settings(deadline=None)
@given(counts=lengths, size=st.integers(1, 32), ranks=st.integers(1, 4), micro=st.integers(1, 33))
def test_parts_of_a_batch_weigh_as_much_as_it_and_ranks_have_as_many(
    counts: list[int], size: int, ranks: int, micro: int
) -> None:
    split, trained = make_split(counts), TrainingSettings(learning_rate=1e-3, micro_batch_size=micro)
    shares = [next(training_batches(split, size, PAD, 3, 0, Group(rank, ranks))) for rank in range(ranks)]
    count = trained.parts(math.ceil(shares[0].size / ranks))
    assert (count == 1) == (micro >= math.ceil(shares[0].size / ranks))
    for share in shares:
        parts = list(share.parts(count))
        assert len(parts) == count
        assert np.isclose(sum(part.weight for _, part in parts), share.weight)
        seen = [position for _, part in parts if part.weight for position in part.positions]
        assert seen == (share.positions.tolist() if share.weight else [])
        for rows, part in parts:
            assert 1 <= len(part.labels) <= micro
            assert torch.equal(part.input_ids, share.input_ids[rows])
            assert torch.equal(part.attention_mask, share.attention_mask[rows])
            assert part.labels.tolist() == split.labels[part.positions].tolist()


@settings(deadline=None)
@given(counts=lengths, size=st.integers(1, 32), most=st.integers(1, 200))
def test_batches_of_an_evaluation_are_as_full_as_may_be(counts: list[int], size: int, most: int) -> None:
    split = make_split(counts)
    cut = list(batches(split, size, PAD, most_tokens=most))
    assert sorted(position for batch in cut for position in batch.positions) == list(range(len(counts)))
    for batch, after in pairwise(cut):
        examples, longest = batch.input_ids.shape
        assert examples == 1 or (examples <= size and batch.input_ids.numel() <= most)
        assert examples == size or (examples + 1) * longest > most, "one more would have fitted"
        assert after.input_ids.shape[1] <= longest


@settings(deadline=None)
@given(counts=lengths, size=st.integers(1, 32), ranks=st.integers(1, 4))
def test_ranks_evaluate_each_example_once_in_as_many_batches(
    counts: list[int], size: int, ranks: int
) -> None:
    split = make_split(counts)
    shares = [list(batches(split, size, PAD, Group(rank, ranks))) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = [position for share in shares for batch in share if batch.weight for position in batch.positions]
    assert sorted(seen) == list(range(len(counts)))


def test_order_is_the_seeds() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, 500)

    def order(seed: int) -> list[int]:
        return np.concatenate(batch_positions(sizes, 16, np.random.default_rng(seed))).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_buckets_leave_little_padding() -> None:
    sizes = np.random.default_rng(0).geometric(0.05, 4000).clip(1, 64)
    cut = batch_positions(sizes, 16, np.random.default_rng(0))
    padded = sum(len(batch) * sizes[batch].max() for batch in cut)
    assert padded < 1.1 * sizes.sum()


def test_a_trial_evaluates_in_batches_of_no_more_tokens_than_are_good_for_the_device() -> None:
    split, trained = make_split([60] * 100), TrainingSettings(learning_rate=1e-3)
    cut = list(evaluation_batches(split, PAD, trained, CPU, ALONE))
    assert max(batch.input_ids.numel() for batch in cut) == 1020
    on_gpu = evaluation_batches(split, PAD, trained, torch.device("cuda"), ALONE)
    assert [len(batch.positions) for batch in on_gpu] == [68, 32]
