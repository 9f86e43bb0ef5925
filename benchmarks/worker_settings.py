"""What a worker's settings gain: how its C library keeps memory, how float32 matrices are multiplied.

Seconds of training steps and of an evaluation, 1 thread, of a GPT-2 on SST-2, in three ways: in a process as
it comes, in one with the workers' environment (``orchestrator.cluster.WORKER_ENVIRONMENT``), and in such a
one with ``model.float32_matmul: medium``. Each measurement is a process of its own; the ways take turns::

    python -m benchmarks.worker_settings --out benchmarks/results/worker_settings.md

The model is the pretrained one of 5.3M parameters in ``../shared``, or with ``--gpt2`` one with GPT-2's
layers, random weights and the other's tokenizer: 92M parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks.inside_trial import SEED, SHARED, TRAINING, Task, take_steps
from benchmarks.machine import machine
from orchestrator.cluster import WORKER_ENVIRONMENT
from trainables.batches import training_batches
from trainables.data import load_data, read_data
from trainables.methods import METHODS
from trainables.parallel import ALONE
from trainables.pretrained import load_base, load_tokenizer
from trainables.scoring import evaluate
from trainables.settings import DataSettings, ModelSettings
from trainables.setup import TrialSpec, set_up
from trainables.trial import CPU, evaluation_batches

SMALL = SHARED / "models" / "gpt2-mini-reviews"
AS_IT_COMES, AS_WORKERS, MEDIUM = "as it comes", "as workers", "as workers, medium"


@dataclass(frozen=True)
class Seconds:
    """Seconds per example."""

    training: float
    evaluation: float


def load_task(model: Path, validation_examples: int) -> Task:
    """Read a model and SST-2."""
    sentences = SHARED / "data" / "sst2"
    settings = ModelSettings(path=str(model))
    tokenizer = load_tokenizer(settings)
    raw = read_data(
        DataSettings(
            path=None,
            columns=["sentence", "label"],
            train=str(sentences / "train.tsv"),
            validation=str(sentences / "dev.tsv"),
            max_train_examples=1000,
            max_validation_examples=validation_examples,
        ),
        SEED,
    )
    data, _ = load_data(raw, tokenizer, 64)
    return Task(data, tokenizer, load_base(settings, data.labels, data.pad_token_id))


def measure(task: Task, kind: str, steps: int, precision: str) -> Seconds:
    """Train and evaluate twice, in this process; the first time warms up."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(precision)
    spec = TrialSpec(kind, kind, kind, SEED, METHODS[kind].settings(), TRAINING)
    trained, _ = set_up(spec, task.base, 10 * steps, CPU, ALONE, task.data.train.longest)
    for _ in range(2):
        started = time.perf_counter()
        rows = training_batches(task.data.train, TRAINING.batch_size, task.data.pad_token_id, SEED)
        examples = take_steps(trained, islice(rows, steps))
        between = time.perf_counter()
        split = evaluation_batches(task.data.validation, task.data.pad_token_id, TRAINING, CPU, ALONE)
        evaluate(trained.model, split, task.data.validation.labels, CPU)
        ended = time.perf_counter()
    return Seconds((between - started) / examples, (ended - between) / len(task.data.validation))


def measure_apart(model: Path, examples: int, kind: str, steps: int, way: str) -> Seconds:
    """Measure in a process of its own."""
    precision = "medium" if way == MEDIUM else "highest"
    measurement = json.dumps([str(model), examples, kind, steps, precision])
    environment = {} if way == AS_IT_COMES else WORKER_ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker_settings", "--measure", measurement],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return Seconds(**json.loads(done.stdout.splitlines()[-1]))


def report(found: dict[str, dict[str, list[Seconds]]], parameters: str) -> str:
    """Write the results as Markdown: ``found`` has a measurement per round by method and way."""
    lines = [
        f"## A GPT-2 of {parameters} parameters",
        "",
        "| method | ms per example, as it comes | as workers | medium | as workers, times as fast |"
        " medium, times as fast as that |",
        "|---|---|---|---|---|---|",
    ]
    for kind, ways in found.items():
        for part in ("training", "evaluation"):
            plain, workers, medium = (
                [getattr(one, part) for one in ways[way]] for way in (AS_IT_COMES, AS_WORKERS, MEDIUM)
            )
            cells = (f"{1000 * statistics.median(each):.2f}" for each in (plain, workers, medium))
            ratios = (_ratio(plain, workers), _ratio(workers, medium))
            lines.append(f"| {kind}, {part} | {' | '.join(cells)} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def _ratio(before: list[float], after: list[float]) -> str:
    ratios = [one / other for one, other in zip(before, after, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpt2", action="store_true", help="the large model in place of the small one")
    parser.add_argument("--out", type=Path, help="Markdown file to add to; without it the table is printed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model, examples, kind, steps, precision = json.loads(options.measure)
        task = load_task(Path(model), examples)
        print(json.dumps(vars(measure(task, kind, steps, precision))))
        return
    with tempfile.TemporaryDirectory() as directory:
        model, steps, examples, parameters = SMALL, 40, 872, "5.3M"
        if options.gpt2:
            model, steps, examples, parameters = Path(directory), 4, 128, "92M"
            GPT2LMHeadModel(GPT2Config(vocab_size=8192)).save_pretrained(directory)
            AutoTokenizer.from_pretrained(SMALL).save_pretrained(directory)
        found: dict[str, dict[str, list[Seconds]]] = {
            kind: {way: [] for way in (AS_IT_COMES, AS_WORKERS, MEDIUM)} for kind in options.methods
        }
        for _ in range(options.rounds):
            for kind, ways in found.items():
                for way, seconds in ways.items():
                    seconds.append(measure_apart(model, examples, kind, steps, way))
    text = report(found, parameters)
    print(text)
    if options.out:
        options.out.parent.mkdir(exist_ok=True)
        heading = (
            "# What a worker's settings are worth\n\n"
            f"{machine()}: `python -m benchmarks.worker_settings`. SST-2 in batches of"
            f" {TRAINING.batch_size}, evaluations in batches of {TRAINING.evaluation_batch_size}, 1 thread,"
            f" {options.rounds} rounds in turns, each measurement a process of its own; medians, least and"
            " most.\n"
        )
        before = options.out.read_text() if options.gpt2 and options.out.exists() else heading
        options.out.write_text(f"{before}\n{text}")


if __name__ == "__main__":
    main()
