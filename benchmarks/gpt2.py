"""What each method costs on GPT-2: memory, speed and sizes, by trials as the product runs them.

    python -m benchmarks.gpt2                                                             # on a GPU
    python -m benchmarks.gpt2 --device cpu --sizes 124M --batch-size 8 --steps 3          # without one

Makes GPT-2 by configuration, with random weights, and examples of 64 random tokens: nothing is downloaded,
and accuracies mean nothing. Every trial runs in a process of its own. It takes a few steps to warm up, which
count for its memory but not its speed, then the timed ones; it is evaluated on one batch after each half.
Writes a table to benchmarks/results/gpt2.md, or to --out. On a CPU, full fine-tuning of the 774M takes 18 GB
of memory; --methods can leave it out.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trainables.data import TokenizedData, TokenizedSplit
from trainables.methods import METHODS
from trainables.pretrained import load_base
from trainables.settings import ModelSettings, TrainingSettings
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, failure_status, run_trial

SIZES = {
    "124M": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "774M": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
}
LENGTH = 64
LABELS = ("negative", "positive")
RESULTS = Path(__file__).parent / "results" / "gpt2.md"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
COLUMNS = ("model", "method", "trainable", "model MB", "peak MB", "examples/s", "checkpoint MB", "set-up s")


@dataclass(frozen=True)
class Job:
    """One trial to measure."""

    model: str  # directory
    kind: str
    dtype: str
    device: str
    batch_size: int
    steps: int  # in each of the two halves: to warm up, and timed


def random_split(examples: int, seed: int) -> TokenizedSplit:
    """Make examples of random tokens, all of the same length."""
    generator = np.random.default_rng(seed)
    return TokenizedSplit(
        tokens=generator.integers(0, GPT2Config().vocab_size, examples * LENGTH, dtype=np.int32),
        offsets=np.arange(examples + 1) * LENGTH,
        labels=generator.integers(0, len(LABELS), examples),
        example_ids=np.arange(examples),
    )


def measure(job: Job) -> list[str]:
    """Run a trial; return its cells of the table."""
    method, padding = METHODS[job.kind], GPT2Config().eos_token_id
    base = load_base(ModelSettings(path=job.model, dtype=job.dtype), LABELS, padding)
    train, validation = random_split(2 * job.steps * job.batch_size, 0), random_split(job.batch_size, 1)
    data = TokenizedData(train, validation, LABELS, padding, "random", {})
    training = TrainingSettings(
        epochs=1,
        evaluations_per_epoch=2,
        batch_size=job.batch_size,
        evaluation_batch_size=job.batch_size,
        learning_rate=1e-5,
    )
    own = {name: value for name, value in method.published_default.items() if name != "learning_rate"}
    spec = TrialSpec(
        job.kind, job.kind, job.kind, 0, method.settings(**own), training, threads=os.cpu_count() or 1
    )
    with tempfile.TemporaryDirectory() as directory:
        best, device = Path(directory) / "best", torch.device(job.device)
        trial = run_trial(TrialInputs(spec, data, base, best, device=device))
        try:
            warm, last = trial
        except Exception as error:
            return [failure_status(error)]
    assert warm.checkpoint is not None
    assert last.peak_memory_bytes is not None
    speed = (last.examples - warm.examples) / (last.train_seconds - warm.train_seconds)
    sizes = (last.model_bytes, last.peak_memory_bytes)
    return [
        f"{last.trainable_parameters:,}",
        *(f"{size / 1e6:,.0f}" for size in sizes),
        f"{speed:,.1f}" if speed >= 1 else f"{speed:.2f}",
        f"{warm.checkpoint.bytes / 1e6:,.1f}",
        f"{last.setup_seconds:.1f}",
    ]


def machine(device: str) -> str:
    """Name the machine that measures."""
    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"CPU only: {os.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return f"CPU only: {os.cpu_count()} cores"


def heading(options: argparse.Namespace) -> str:
    """Say what was measured, where and how."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    whole_process = "the process's, interpreter and base model included"
    steps = options.steps
    return f"""\
# GPT-2

{machine(options.device)}; Python {platform.python_version()}, {versions}; {datetime.now(UTC):%Y-%m-%d}:
`python -m benchmarks.gpt2`. GPT-2 by configuration, random weights in {options.dtype}, batches of
{options.batch_size} examples of {LENGTH} tokens, each method at its published default rank, {steps} steps to
warm up and {steps} timed. Peak memory is {"the allocator's" if options.device == "cuda" else whole_process}.
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; expected one, or --device cpu")
    rows = [COLUMNS]
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as directory:
            torch.manual_seed(0)
            GPT2LMHeadModel(GPT2Config(**SIZES[size])).save_pretrained(directory)
            for kind in options.methods:
                job = Job(directory, kind, options.dtype, options.device, options.batch_size, options.steps)
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    cells = process.submit(measure, job).result()
                rows.append((size, kind, *cells, *[""] * (len(COLUMNS) - 2 - len(cells))))
                print(*rows[-1], sep="  ", flush=True)
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    table = "\n".join([head, "|---" * len(COLUMNS) + "|", *body])
    options.out.write_text(f"{heading(options)}\n{table}\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
