"""Memory of one more trial on a node: private bytes of a worker that trains, over one that idles.

    python -m benchmarks.one_more_trial --out benchmarks/results/one_more_trial.md

GPT-2 124M by configuration, with random weights, in Ray's object store; batches of 16 examples of 32 random
tokens; one thread. Private bytes are what would be freed if the process ended (Linux USS): pages of the
object store, which all workers of a node share, are not among them. Each method gets a process of its own,
which has imported everything and trained nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.machine import machine
from orchestrator.cluster import WORKER_ENVIRONMENT
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit
from trainables.measure import give_back_memory
from trainables.methods import METHODS
from trainables.pretrained import load_base
from trainables.quantization import with_quantized
from trainables.settings import ModelSettings, TrainingSettings
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, run_trial

LABELS = ("negative", "positive")
EXAMPLES, BATCH_SIZE, LENGTH, PERIOD = 128, 16, 32, 0.02
SAVINGS: tuple[dict[str, Any], ...] = ({}, {"micro_batch_size": 4}, {"gradient_checkpointing": True})
"""Settings that save memory, and none."""

MB = 1_000_000


@ray.remote(num_cpus=1)
class Worker:
    """The process of a trial."""

    def process(self) -> int:
        """Return its id, once everything is imported."""
        return os.getpid()

    def train(
        self, kind: str, saving: dict[str, Any], base: BaseModel, data: TokenizedData
    ) -> tuple[int, float]:
        """Run a trial to its end; return the bytes of its model and the seconds of a training step."""
        method = METHODS[kind]
        own = {name: value for name, value in method.published_default.items() if name != "learning_rate"}
        training = TrainingSettings(
            epochs=1,
            evaluations_per_epoch=1,
            batch_size=BATCH_SIZE,
            evaluation_batch_size=BATCH_SIZE,
            learning_rate=1e-4,
            **saving,
        )
        spec = TrialSpec(kind, kind, kind, 0, method.settings(**own), training)
        with tempfile.TemporaryDirectory() as directory:
            *_, last = run_trial(TrialInputs(spec, data, base, Path(directory) / "best"))
        give_back_memory()  # as a worker does between two trials
        return last.model_bytes, last.train_seconds / last.step


def random_split(examples: int) -> TokenizedSplit:
    """Make examples of random tokens."""
    generator = np.random.default_rng(examples)
    return TokenizedSplit(
        tokens=generator.integers(0, GPT2Config().vocab_size, examples * LENGTH, dtype=np.int32),
        offsets=np.arange(examples + 1) * LENGTH,
        labels=generator.integers(0, len(LABELS), examples),
        example_ids=np.arange(examples),
    )


def private_bytes(process: psutil.Process) -> int:
    """Return the memory that only this process has."""
    return int(process.memory_full_info().uss)


def measure(kind: str, saving: dict[str, Any], base: Any, data: Any) -> list[str]:
    """Run a trial in a worker of its own; return its cells of the table.

    Arguments:
        kind: of method.
        saving: settings that save memory.
        base: the base model, in the object store.
        data: to train on, in the object store.
    """
    worker = Worker.remote()  # type: ignore[attr-defined]  # an actor
    process = psutil.Process(ray.get(worker.process.remote()))
    time.sleep(1)
    idle, seen = private_bytes(process), []
    training = worker.train.remote(kind, saving, base, data)
    while not ray.wait([training], timeout=PERIOD)[0]:
        seen.append(private_bytes(process))
    model_bytes, seconds = ray.get(training)
    after = private_bytes(process)
    ray.kill(worker)
    sizes = (idle, statistics.median(seen) - idle, max(seen) - idle, after - idle, model_bytes)
    named = ", ".join([kind, *(f"{name}: {str(value).lower()}" for name, value in saving.items())])
    return [named, *(f"{size / MB:,.0f}" for size in sizes), f"{seconds:.2f}"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    padding = GPT2Config().eos_token_id
    os.environ.update(WORKER_ENVIRONMENT)  # as a run does
    ray.init(log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
        base = ray.put(with_quantized(load_base(ModelSettings(path=directory), LABELS, padding)))
    data = TokenizedData(random_split(EXAMPLES), random_split(BATCH_SIZE), LABELS, padding, "random", {})
    trials = [(kind, saving) for saving in SAVINGS for kind in options.methods]
    # The base of a head keeps no activations that could be recomputed.
    trials = [trial for trial in trials if trial != ("head", {"gradient_checkpointing": True})]
    rows = [measure(kind, saving, base, ray.put(data)) for kind, saving in trials]
    ray.shutdown()
    text = report(rows)
    print(text)
    if options.out:
        options.out.write_text(text)


def report(rows: Sequence[Sequence[str]]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# Memory of one more trial",
        "",
        f"{machine()}: `python -m benchmarks.one_more_trial`. GPT-2 124M by configuration, float32,"
        f" {EXAMPLES // BATCH_SIZE} steps on batches of {BATCH_SIZE} examples of {LENGTH} tokens, one thread,"
        " each method at its published default rank. Private bytes (USS) over those of the worker while it"
        f" idled, read every {1000 * PERIOD:.0f} ms; each method in a process of its own."
        " The base's weights lie in the object store. Seconds are rough: nothing was run twice.",
        "",
        "| method | idle, MB | training, median, MB more | at most, MB more | after, MB more | model, MB"
        " | a step, s |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
