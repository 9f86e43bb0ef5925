"""What training trials in one pass through their base saves, against one after another in one process.

    python -m benchmarks.packing --model DIRECTORY --train train.tsv     # a model and sentences
    python -m benchmarks.packing --model embedded                        # the built-in ones
    python -m benchmarks.packing --gpt2                                  # GPT-2 124M by configuration
    python -m benchmarks.packing --gpt2 --device cuda --float32-matmul high --sizes 8 16 32 --processes 1 4 8

LoRA trials of mixed ranks and learning rates, batches of 16. In each round the trials of a pack take some
steps one after another, then as many together, so that a noisy machine is noisy for both; medians are over
the rounds' ratios. On a GPU they also take them kernel by kernel, without CUDA graphs. With ``--gpt2``
weights are random, and each example has 32 random tokens. With ``--processes``, that many processes train a
trial each at the same time, like trials that share a GPU by fractions.

Operators are those that PyTorch's profiler counts on the CPU, without views and allocations; on a GPU each
would launch a kernel, and there kernels are counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.machine import machine
from trainables.base_model import BaseModel
from trainables.batches import training_batches
from trainables.data import TokenizedSplit, load_data, read_data
from trainables.measure import synchronize
from trainables.methods import METHODS
from trainables.pack import Pack
from trainables.parallel import ALONE
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings, TrainingSettings
from trainables.setup import TrialSpec, set_up
from trainables.stretch import Stretch, train
from trainables.trial import PADDED_TO

BATCH_SIZE = 16
RANKS = (4, 8, 16, 32)
IN_TURN, BY_KERNEL, PACK = "one after another", "one after another, kernel by kernel", "in a pack"
"""Ways of training several trials."""
LENGTH = 32
"""Tokens of random examples."""

NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        "view _unsafe_view reshape _reshape_alias as_strided t transpose permute expand expand_as slice"
        " select narrow split split_with_sizes unsqueeze squeeze detach alias unflatten flatten unbind"
        " lift_fresh empty empty_like empty_strided resize_ result_type set_ item _local_scalar_dense"
        " is_nonzero"
    ).split()
)
"""Operators that only view memory differently, or allocate it."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of trials."""

    name: str
    base: BaseModel
    split: TokenizedSplit
    pad_token_id: int
    device: torch.device


def make_inputs(options: argparse.Namespace) -> Inputs:
    """Make the inputs that the options ask for."""
    return random_inputs(options) if options.gpt2 else real_inputs(options)


def real_inputs(options: argparse.Namespace) -> Inputs:
    """Read a model and sentences."""
    model = ModelSettings(path=options.model)
    settings = DataSettings()
    if options.train:
        own = {"train": options.train, "validation": None, "columns": ["sentence", "label"]}
        settings = DataSettings(path=None, **own)
    data, _ = load_data(read_data(settings, 0), load_tokenizer(model), settings.max_length)
    base = load_base(model, data.labels, data.pad_token_id)
    name = f"{Path(options.model).name}, sentences of at most {settings.max_length} tokens"
    return Inputs(name, base, data.train, data.pad_token_id, torch.device(options.device))


def random_inputs(options: argparse.Namespace) -> Inputs:
    """Make GPT-2 124M and examples of random tokens, all of one length."""
    generator, examples = np.random.default_rng(0), 100 * BATCH_SIZE
    padding = GPT2Config().eos_token_id
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
        base = load_base(ModelSettings(path=directory), ("negative", "positive"), padding)
    split = TokenizedSplit(
        tokens=generator.integers(0, padding, examples * LENGTH, dtype=np.int32),
        offsets=np.arange(examples + 1) * LENGTH,
        labels=generator.integers(0, 2, examples),
        example_ids=np.arange(examples),
    )
    name = f"GPT-2 124M by configuration, {LENGTH} tokens each"
    return Inputs(name, base, split, padding, torch.device(options.device))


def begin(inputs: Inputs, number: int) -> Stretch:
    """Set up a trial with endless batches."""
    settings = METHODS["lora"].settings(rank=RANKS[number % len(RANKS)], dropout=0.05)
    training = TrainingSettings(learning_rate=1e-3 / (number + 1), batch_size=BATCH_SIZE)
    spec = TrialSpec(f"lora-{number}", "lora", "lora", number, settings, training)
    trained, _ = set_up(spec, inputs.base, 10**6, inputs.device, ALONE, inputs.split.longest)
    multiple = PADDED_TO[inputs.device.type]
    batches = training_batches(inputs.split, BATCH_SIZE, inputs.pad_token_id, number, multiple=multiple)
    return Stretch(trained, batches, training, torch.float32)


def apart(stretches: Sequence[Stretch], steps: int, recorded: bool = True) -> None:
    """Take steps of each trial, one trial after another."""
    for one in stretches:
        trained = one.trained if recorded else replace(one.trained, graphs=None)
        train(Stretch(trained, islice(one.batches, steps), one.settings, one.dtype))


def together(pack: Pack, steps: int) -> None:
    """Take steps of all trials of a pack at once."""
    for _ in range(steps):
        outcomes = pack.train()
        assert not outcomes


def make_pack(inputs: Inputs, size: int) -> Pack:
    """Begin a pack."""
    said: list[str] = []
    pack = Pack(inputs.base, said.append)
    for number in range(size):
        pack.join(str(number), iter([begin(inputs, number)]))
        pack.go_on(str(number))
    together(pack, 2)  # on a GPU, the second pass is recorded
    assert not said
    return pack


@dataclass(frozen=True)
class Measured:
    """The results of one size of pack."""

    size: int
    speeds: dict[str, list[float]]  # by the way of training: examples per second, of each round
    operators: dict[str, float]  # by the way of training: per step of a trial

    def ratios(self, way: str) -> list[float]:
        """Divide the pack's speed by another way's, round by round."""
        return [packed / other for packed, other in zip(self.speeds[PACK], self.speeds[way], strict=True)]


def measure(inputs: Inputs, size: int, steps: int, rounds: int) -> Measured:
    """Train ``size`` trials each way, in turns."""
    alone = [begin(inputs, number) for number in range(size)]
    pack = make_pack(inputs, size)
    apart(alone, 2)  # so is the second step of a trial
    ways = {IN_TURN: lambda n: apart(alone, n), PACK: lambda n: together(pack, n)}
    if inputs.device.type == "cuda":
        ways[BY_KERNEL] = lambda n: apart(alone, n, recorded=False)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 1):
            synchronize(inputs.device)
            started = time.perf_counter()
            ways[name](steps)
            synchronize(inputs.device)
            speeds[name].append(size * steps * BATCH_SIZE / (time.perf_counter() - started))
    counts = {}
    for name, take in ways.items():
        activities = [ProfilerActivity.CPU]
        if inputs.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            take(1)
            synchronize(inputs.device)
        counts[name] = operators(profiler, inputs.device) / size
    return Measured(size, speeds, counts)


def train_beside_others(options: argparse.Namespace, number: int, barrier: Barrier) -> None:
    """Train a trial in this process, in each round that includes it."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision(options.float32_matmul)
    inputs = make_inputs(options)
    stretch = begin(inputs, number)
    apart([stretch], 2)
    barrier.wait()
    for count in turns(options):
        barrier.wait()
        if number < count:
            apart([stretch], options.steps)
            synchronize(inputs.device)
        barrier.wait()


def turns(options: argparse.Namespace) -> list[int]:
    """Return how many processes train at once, turn by turn."""
    return options.rounds * list(options.processes)


def at_once(options: argparse.Namespace) -> dict[int, float]:
    """Return the examples per second of each number of processes together, medians of the rounds."""
    context = get_context("spawn")
    most = max(options.processes)
    barrier = context.Barrier(most + 1)
    processes = [
        context.Process(target=train_beside_others, args=(options, number, barrier), daemon=True)
        for number in range(most)
    ]
    for process in processes:
        process.start()
    barrier.wait(timeout=120)
    speeds: dict[int, list[float]] = {count: [] for count in options.processes}
    for count in turns(options):
        barrier.wait()
        started = time.perf_counter()
        barrier.wait()
        speeds[count].append(count * options.steps * BATCH_SIZE / (time.perf_counter() - started))
    for process in processes:
        process.join()
    return {count: statistics.median(found) for count, found in speeds.items()}


def operators(profiler: profile, device: torch.device) -> int:
    """Count the operators that ran, or on a GPU the launches."""
    if device.type == "cuda":
        return sum("LaunchKernel" in event.name or "GraphLaunch" in event.name for event in profiler.events())
    return sum(
        event.name.startswith("aten::") and event.name not in NO_KERNEL and not event.cpu_children
        for event in profiler.events()
    )


def report(
    inputs: Inputs, found: Sequence[Measured], processes: dict[int, float], options: argparse.Namespace
) -> str:
    """Write the results as Markdown."""
    on_gpu = inputs.device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{options.threads} thread"
    lines = [
        f"## {inputs.name}, float32_matmul: {options.float32_matmul}",
        "",
        f"{machine()}: `python -m benchmarks.packing`, on {where}. LoRA of ranks"
        f" {', '.join(map(str, RANKS))} in turn, batches of {BATCH_SIZE}, dropout as in GPT-2;"
        f" {options.rounds} rounds of {options.steps} steps of each trial.",
        "",
        f"| trials | trained | examples/s | {'launches' if on_gpu else 'operators'} a step | pack / this way,"
        " median (least to most) |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        for way, speeds in one.speeds.items():
            ratios = one.ratios(way)
            against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(
                f"| {one.size} | {way} | {statistics.median(speeds):,.1f} | {one.operators[way]:,.0f} |"
                f" {'' if way == PACK else against} |"
            )
    if processes:
        best = max(processes.values())
        lines += [
            "",
            "| processes at once | together, examples/s |",
            "|---|---|",
            *(f"| {count} | {speed:,.1f} |" for count, speed in processes.items()),
            "",
            "Against the best of these, a pack is "
            + ", ".join(
                f"{statistics.median(one.speeds[PACK]) / best:.2f} ({one.size} trials)" for one in found
            )
            + " times as fast.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="directory of a saved model, or embedded")
    parser.add_argument("--train", help="TSV of sentence and label; the built-in data if not given")
    parser.add_argument("--gpt2", action="store_true", help="GPT-2 124M with random weights instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--processes", type=int, nargs="*", default=[])
    parser.add_argument("--float32-matmul", choices=("highest", "high", "medium"), default="highest")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file that the section is put at the end of")
    options = parser.parse_args()
    if not options.gpt2 and not options.model:
        parser.error("expected --model, or --gpt2")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here")
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision(options.float32_matmul)
    inputs = make_inputs(options)
    found = []
    for size in options.sizes:
        found.append(measure(inputs, size, options.steps, options.rounds))
        print(*report(inputs, found[-1:], {}, options).splitlines()[5:], sep="\n", flush=True)
    text = report(inputs, found, at_once(options) if options.processes else {}, options)
    print(text)
    if options.out:
        with open(options.out, "a") as file:
            file.write(f"\n{text}" if file.tell() else f"# Packed trials\n\n{text}")


if __name__ == "__main__":
    main()
