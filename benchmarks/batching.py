"""How much faster training is with length buckets than with other ways of padding.

    python -m benchmarks.batching --train train.tsv --model DIRECTORY

Trains the same number of steps each way, in turns, so that a noisy machine is noisy for all, and prints
the median over the rounds of examples per second and of their ratio to fixed padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.batches import Batch, batch_positions, make_batch
from trainables.data import TokenizedSplit, load_data, read_data
from trainables.methods import METHODS
from trainables.parallel import ALONE
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings, TrainingSettings
from trainables.setup import TrialSpec, set_up
from trainables.stretch import Stretch, train
from trainables.trial import CPU

BATCH_SIZE = 16

Positions = Callable[[NDArray[np.int64], np.random.Generator], list[NDArray[np.int64]]]


def shuffled(lengths: NDArray[np.int64], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Cut a random order into batches, ignoring lengths."""
    order = generator.permutation(len(lengths))
    return [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


def bucketed(lengths: NDArray[np.int64], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Draw batches as trials do."""
    return batch_positions(lengths, BATCH_SIZE, generator)


def padded(batch: Batch, columns: int, pad_token_id: int) -> Batch:
    """Pad a batch to a number of columns."""
    missing = columns - batch.input_ids.shape[1]
    pad = torch.nn.functional.pad
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, missing), value=pad_token_id),
        attention_mask=pad(batch.attention_mask, (0, missing)),
    )


def make_batches(
    split: TokenizedSplit, positions: Positions, fixed: int | None, pad_token_id: int, seed: int
) -> Iterator[Batch]:
    """Yield an epoch's batches."""
    for chosen in positions(split.lengths, np.random.default_rng(seed)):
        batch = make_batch(split, chosen, pad_token_id)
        yield padded(batch, fixed, pad_token_id) if fixed else batch


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", default="train", help="TSV of sentence and label; the built-in data if not given"
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--method", default="full", choices=METHODS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    local = options.train != "train"
    settings = DataSettings(
        path=None if local else "embedded",
        train=options.train,
        validation=None if local else "validation",
        columns=["sentence", "label"] if local else None,
    )
    model_settings = ModelSettings(path=options.model)
    data, _ = load_data(read_data(settings, 0), load_tokenizer(model_settings), options.max_length)
    base = load_base(model_settings, data.labels, data.pad_token_id)
    training = TrainingSettings(learning_rate=1e-4, batch_size=BATCH_SIZE)
    method = options.method
    spec = TrialSpec(method, method, method, 0, METHODS[method].settings(), training)
    trained, _ = set_up(spec, base, 10**6, CPU, ALONE, options.max_length)
    ways: dict[str, tuple[Positions, int | None]] = {
        f"fixed padding to {options.max_length}": (shuffled, options.max_length),
        "padding to the batch's longest": (shuffled, None),
        "length buckets": (bucketed, None),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(options.rounds + 1):
        for name, (positions, fixed) in ways.items():
            epoch = list(
                islice(make_batches(data.train, positions, fixed, data.pad_token_id, seed), options.steps)
            )
            started = time.perf_counter()
            train(Stretch(trained, iter(epoch), training, torch.float32))
            seconds = time.perf_counter() - started
            if seed:  # the first round warms up
                speeds[name].append(sum(len(batch.positions) for batch in epoch) / seconds)
    slowest = np.array(next(iter(speeds.values())))
    print(
        f"{options.method}: {options.steps} steps of {BATCH_SIZE}, 1 thread, {options.rounds} rounds' median"
    )
    for name, values in speeds.items():
        print(f"{name:32} {np.median(values):8.1f} examples/s {np.median(np.array(values) / slowest):6.2f} x")


if __name__ == "__main__":
    main()
