"""How fast one trial trains, against the HF Trainer and against what the machine's cores can do.

Examples per second of training, 1 thread or a GPU, of a GPT-2 on SST-2: our loop, the HF Trainer as one
writes it (``DataCollatorWithPadding``, batches of any lengths), and the HF Trainer on exactly our batches,
which separates the gain of the batches from that of the loop. All three train the same examples in batches of
the same size, in turns, so that a noisy machine is noisy for all; the first two steps are not timed::

    python -m benchmarks.inside_trial --out benchmarks/results/inside_trial.md

The model and the data are those in ``../shared``, or those that the options name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from benchmarks.machine import machine
from benchmarks.plain_tune import TARGETS
from trainables.base_model import BaseModel
from trainables.batches import Batch, batch_positions, training_batches
from trainables.data import TokenizedData, TokenizedSplit, load_data, read_data
from trainables.measure import synchronize
from trainables.methods import METHODS
from trainables.parallel import ALONE
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings, TrainingSettings
from trainables.setup import TrialSpec, set_up
from trainables.training import Trained, train_step
from trainables.trial import CPU, PADDED_TO

SHARED = Path(__file__).parents[2] / "shared"
BATCH_SIZE, SEED = 16, 1
WARM_UP = 2
"""Steps of an epoch that are not timed: the first ones allocate what later ones reuse."""
OURS, PLAIN, SAME = "our loop", "Trainer", "Trainer, our batches"
TRAINING = TrainingSettings(learning_rate=3e-4, batch_size=BATCH_SIZE)


@dataclass(frozen=True)
class Task:
    """What all three loops train on."""

    data: TokenizedData
    tokenizer: PreTrainedTokenizerBase
    base: BaseModel
    device: torch.device = CPU

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data.train) // BATCH_SIZE

    @property
    def timed_examples(self) -> int:
        """Timed examples of an epoch."""
        return (self.steps - WARM_UP) * BATCH_SIZE


def our_seconds(task: Task, kind: str) -> float:
    """Train an epoch as a trial does; return the seconds of the timed steps."""
    spec = TrialSpec(kind, kind, kind, SEED, METHODS[kind].settings(), TRAINING)
    trained, _ = set_up(spec, task.base, 10 * task.steps, task.device, ALONE, task.data.train.longest)
    data = epochs(task)
    take_steps(trained, islice(data, WARM_UP))
    synchronize(task.device)
    started = time.perf_counter()
    take_steps(trained, islice(data, task.steps - WARM_UP))
    synchronize(task.device)
    return time.perf_counter() - started


def epochs(task: Task) -> Iterator[Batch]:
    """Yield the batches that a trial trains on."""
    return training_batches(
        task.data.train,
        BATCH_SIZE,
        task.data.pad_token_id,
        SEED,
        multiple=PADDED_TO[task.device.type],
    )


def take_steps(trained: Trained, batches: Iterable[Batch]) -> int:
    """Take a step on each batch, as a trial does; return the number of examples."""
    examples = 0
    with trained.stream.active():
        for batch in batches:
            train_step(trained, batch, TRAINING, torch.float32)
            examples += batch.size
    return examples


class GivenBatches(Trainer):
    """The HF Trainer on batches given as row numbers of its data."""

    rows: list[list[int]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        dataset: Any = self.train_dataset
        return DataLoader(dataset, batch_sampler=self.rows, collate_fn=self.data_collator)


class Watch(TrainerCallback):
    """Time the timed steps of an epoch only: what comes before and after them is not training."""

    started = seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == WARM_UP:
            synchronize(args.device)
            self.started = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        synchronize(args.device)
        self.seconds = time.perf_counter() - self.started


def plain_model(task: Task, kind: str) -> nn.Module:
    """Load and wrap a model the usual way with the same libraries; see ``plain_tune.py``."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        task.base.path,
        num_labels=len(task.data.labels),
        pad_token_id=task.data.pad_token_id,
        dtype=torch.float32,
        **({"quantization_config": quantization} if kind == "qlora" else {}),
    )
    if kind == "full":
        return model
    if kind == "head":
        model.base_model.requires_grad_(False)
        return model
    if kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    settings: Any = METHODS[kind].settings()
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=TARGETS,
        modules_to_save=["score"],
        use_dora=kind == "dora",
        fan_in_fan_out=kind != "qlora",
    )
    return get_peft_model(model, config)


def rows(split: TokenizedSplit) -> Iterator[dict[str, Any]]:
    """Yield examples in the form of a tokenized data set."""
    for start, end, label in zip(split.offsets, split.offsets[1:], split.labels, strict=False):
        ids = split.tokens[start:end].tolist()
        yield {"input_ids": ids, "attention_mask": [1] * len(ids), "label": int(label)}


def trainer_seconds(task: Task, kind: str, batches: list[list[int]] | None) -> float:
    """Train an epoch with the HF Trainer, on given batches or its own; return the timed seconds."""
    watch = Watch()
    with TemporaryDirectory() as directory:
        common: dict[str, Any] = {
            "model": plain_model(task, kind),
            "args": TrainingArguments(
                output_dir=directory,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=TRAINING.learning_rate,
                warmup_steps=TRAINING.warmup_fraction,
                weight_decay=TRAINING.weight_decay,
                max_grad_norm=TRAINING.max_gradient_norm,
                save_strategy="no",
                seed=SEED,
                use_cpu=task.device.type == "cpu",
                report_to="none",
                disable_tqdm=True,
            ),
            "train_dataset": Dataset.from_list(list(rows(task.data.train))),
            "data_collator": DataCollatorWithPadding(task.tokenizer),
            "callbacks": [watch],
        }
        trainer = Trainer(**common) if batches is None else GivenBatches(**common)
        if isinstance(trainer, GivenBatches):
            assert batches is not None
            trainer.rows = batches
        trainer.train()
    return watch.seconds


def our_batches(task: Task) -> list[list[int]]:
    """Return the rows of a trial's first epoch of batches."""
    cut = batch_positions(task.data.train.lengths, BATCH_SIZE, np.random.default_rng(SEED))
    return [positions.tolist() for positions in cut]


def flops_per_example(task: Task, kind: str) -> float:
    """Count the floating-point operations of an epoch's forward and backward passes, per example.

    Those of matrix products and attention as executed, recomputation and padding included.
    """
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        torch.ops.bitsandbytes.gemm_4bit: _gemm_4bit_flops,
    }
    spec = TrialSpec(kind, kind, kind, SEED, METHODS[kind].settings(), TRAINING)
    trained, _ = set_up(spec, task.base, 10 * task.steps, task.device, ALONE, task.data.train.longest)
    trained = replace(trained, graphs=None)  # of whose operations PyTorch sees none
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        examples = take_steps(trained, islice(epochs(task), task.steps))
    return counter.get_total_flops() / examples


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _gemm_4bit_flops(inputs: Any, _: Any, shape: Any, *__: Any, **___: Any) -> int:
    return int(2 * np.prod(inputs) * shape[0])


def matrix_rate(device: torch.device, rounds: int = 5) -> float:
    """Measure the floating-point operations per second of a large float32 matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    one, other = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    seconds = []
    for _ in range(rounds + 1):
        synchronize(device)
        started = time.perf_counter()
        one @ other
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[1:])


@dataclass(frozen=True)
class Found:
    """What was measured of one method."""

    kind: str
    speeds: dict[str, list[float]]  # examples per second of each way, round by round
    flops: float  # per example, our loop

    @property
    def speed(self) -> float:
        """Examples per second of our loop."""
        return statistics.median(self.speeds[OURS])

    def ratios(self, way: str) -> list[float]:
        """Divide our speed by another way's, round by round."""
        return [ours / its for ours, its in zip(self.speeds[OURS], self.speeds[way], strict=True)]


def measure(task: Task, kind: str, pairs: int) -> Found:
    """Measure one method, each way in turn, after a first round to warm up."""
    batches = our_batches(task)
    speeds: dict[str, list[float]] = {OURS: [], PLAIN: [], SAME: []}
    for number in range(pairs + 1):
        seconds = {
            OURS: our_seconds(task, kind),
            PLAIN: trainer_seconds(task, kind, None),
            SAME: trainer_seconds(task, kind, batches),
        }
        for way, value in seconds.items():
            if number:
                speeds[way].append(task.timed_examples / value)
    return Found(kind, speeds, flops_per_example(task, kind))


def report(found: list[Found], rate: float, task: Task, pairs: int) -> str:
    """Write the results as Markdown."""
    is_cpu = task.device.type == "cpu"
    where = "1 thread" if is_cpu else torch.cuda.get_device_name(task.device)
    who = "One thread" if is_cpu else "The GPU"
    parameters = sum(weights.size for weights in task.base.weights.values())
    lines = [
        "# Inside one trial",
        "",
        f"{machine()}: `python -m benchmarks.inside_trial`. {len(task.data.train)} sentences of SST-2 in"
        f" batches of {BATCH_SIZE}, a GPT-2 of {parameters / 1e6:.1f}M parameters, each method at its default"
        f" rank, float32, {where}, {pairs} rounds in turns; medians, least and most. *Trainer* is the HF"
        " Trainer with DataCollatorWithPadding and its defaults.",
        "",
        "| method | our loop, examples/s | Trainer | ours / Trainer | Trainer, our batches | ours / that |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one.kind} | {one.speed:.0f} | {statistics.median(one.speeds[PLAIN]):.0f} |"
            f" {_spread(one.ratios(PLAIN))} | {statistics.median(one.speeds[SAME]):.0f} |"
            f" {_spread(one.ratios(SAME))} |"
            for one in found
        ),
        "",
        "## Distance to the physical limit",
        "",
        f"{who} multiplies large float32 matrices at {rate / 1e9:.0f} GFLOP/s. A method's FLOPs are"
        " those of the matrix products and attention of its forward and backward passes as executed, padding"
        " included.",
        "",
        "| method | MFLOP per example | our loop, GFLOP/s | of the matrix rate | limit, examples/s |",
        "|---|---|---|---|---|",
        *(
            f"| {one.kind} | {one.flops / 1e6:.0f} | {one.flops * one.speed / 1e9:.1f} |"
            f" {one.flops * one.speed / rate:.0%} | {rate / one.flops:.0f} |"
            for one in found
        ),
    ]
    return "\n".join(lines) + "\n"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "gpt2-mini-reviews")
    parser.add_argument("--train", type=Path, default=SHARED / "data" / "sst2" / "train.tsv")
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    for path in (options.model, options.train):
        if not path.exists():
            print(f"skipped: there is no {path}; --model and --train name a GPT-2 and sentences with labels")
            return
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    logging.set_verbosity_error()
    model = ModelSettings(path=str(options.model))
    if options.examples % BATCH_SIZE:
        parser.error(f"--examples: expected a multiple of {BATCH_SIZE}, got {options.examples}")
    settings = DataSettings(
        path=None,
        columns=["sentence", "label"],
        train=str(options.train),
        validation=None,
        max_train_examples=options.examples,
    )
    tokenizer = load_tokenizer(model)
    data, _ = load_data(read_data(settings, SEED), tokenizer, settings.max_length)
    task = Task(data, tokenizer, load_base(model, data.labels, data.pad_token_id), device)
    rate = matrix_rate(device)
    found = [measure(task, kind, options.pairs) for kind in options.methods]
    text = report(found, rate, task, options.pairs)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
