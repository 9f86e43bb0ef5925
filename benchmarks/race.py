"""Time to the finished search: ours against the peer in ``plain_tune.py``, in interleaved pairs.

Five methods, six trials each, two slots, 1,000 sentences of SST-2, a small pretrained GPT-2. Random search,
so that both train trials of the same hyperparameters; ASHA stops them in both::

    python -m benchmarks.race --pairs 3 --out benchmarks/results/race.md

Trials are short unless ``--epochs`` and ``--evaluations`` say otherwise, so that three pairs take minutes.
What the peer spends on every trial, and we spend once, then weighs more than in long trials. Needs the real
data and models in ``../shared``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.machine import machine
from results import load

SHARED = Path(__file__).parents[2] / "shared"
SLOTS = 2
VALIDATION = 872
"""Validation sentences: SST-2's own."""


@dataclass(frozen=True)
class Size:
    """What is raced."""

    trials: int  # per method
    epochs: int
    evaluations: int  # per epoch
    matmul: str = "highest"  # how ours multiplies float32 matrices

    def __str__(self) -> str:
        return (
            f"Five methods, {self.trials} trials each, at most {self.epochs} epochs of 1,000 sentences of"
            f" SST-2, {self.evaluations} evaluations an epoch on {VALIDATION} others, {SLOTS} slots, a GPT-2"
            f" of 5.3M parameters, float32, multiplied by us at precision '{self.matmul}'."
        )


@dataclass(frozen=True)
class Race:
    """Both programs' seconds and what they found, by method."""

    ours: float
    plain: float
    our_best: pd.Series  # validation accuracy, 0 to 1
    plain_best: pd.Series
    our_evaluations: int
    plain_evaluations: int
    useful: float  # share of the slots' time from our first trial's start that was training or evaluation


def make_experiment(directory: Path, size: Size) -> Path:
    """Write the experiment that both programs run."""
    data = SHARED / "data" / "sst2"
    values = {
        "name": "race",
        "model": {
            "path": str(SHARED / "models" / "gpt2-mini-reviews"),
            "float32_matmul": size.matmul,
        },
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            "train": str(data / "train.tsv"),
            "validation": str(data / "dev.tsv"),
            "max_train_examples": 1000,
        },
        "training": {"epochs": size.epochs, "batch_size": 16, "evaluations_per_epoch": size.evaluations},
        "search": {"trials": size.trials, "sampler": "random"},
        "confirm": {"seeds": 0},
        "resources": {"max_concurrent": SLOTS},
        "storage": str(directory / "runs"),
    }
    file = directory / "race.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


def timed(*command: str) -> float:
    """Run a whole command and return its seconds."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started


def race(directory: Path, size: Size) -> Race:
    """Run both programs once."""
    directory.mkdir()
    file = make_experiment(directory, size)
    ours = timed("-m", "orchestrator.run", str(file))
    plain = timed("-m", "benchmarks.plain_tune", str(file), "--output", str(directory / "plain.json"))
    found = load(directory / "runs" / "race").trials
    peer = pd.DataFrame(json.loads((directory / "plain.json").read_text())["trials"])
    failed = [*found.error.dropna(), *peer.error.dropna()]
    assert not failed, failed[0]
    wall = (found.ended_at.max() - found.started_at.min()).total_seconds()
    return Race(
        ours=ours,
        plain=plain,
        our_best=found.groupby("method", sort=False).validation_accuracy.max(),
        plain_best=peer.groupby("method", sort=False).objective.max(),
        our_evaluations=int(found.evaluations.sum()),
        plain_evaluations=int(peer.evaluation.sum()),
        useful=float((found.train_seconds + found.evaluation_seconds).sum() / (SLOTS * wall)),
    )


def report(races: list[Race], size: Size) -> str:
    """Write the results as Markdown."""
    ratios = [one.plain / one.ours for one in races]
    ours = pd.concat([one.our_best for one in races], axis=1).mean(axis=1)
    plain = pd.concat([one.plain_best for one in races], axis=1).mean(axis=1)
    lines = [
        "# Time to the finished search, against the same libraries used plainly",
        "",
        f"{machine()}: `python -m benchmarks.race --pairs {len(races)} --trials {size.trials} --epochs"
        f" {size.epochs} --evaluations {size.evaluations} --matmul {size.matmul}`. {size} Useful is the share"
        " of the slots' time, from the first trial's start to the last one's end, that was training or"
        " evaluation.",
        "",
        "| pair | ours, s | plain, s | plain / ours | evaluations, ours and plain | useful |",
        "|---|---|---|---|---|---|",
        *(
            f"| {i} | {one.ours:.0f} | {one.plain:.0f} | {ratio:.2f} | {one.our_evaluations} and"
            f" {one.plain_evaluations} | {one.useful:.0%} |"
            for i, (one, ratio) in enumerate(zip(races, ratios, strict=True), start=1)
        ),
        "",
        f"Median: {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}).",
        "",
        "Best validation accuracy, the mean over pairs. A difference is within chance below 1.96 times the"
        " standard error of the difference of two accuracies, each on so many sentences.",
        "",
        "| method | ours | plain | difference | within chance below |",
        "|---|---|---|---|---|",
        *(
            f"| {method} | {ours[method]:.1%} | {plain[method]:.1%} |"
            f" {100 * (ours[method] - plain[method]):+.1f} points |"
            f" {100 * 1.96 * math.sqrt(2 * ours[method] * (1 - ours[method]) / VALIDATION):.1f} |"
            for method in ours.index
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=6, help="per method")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--evaluations", type=int, default=3, help="per epoch")
    parser.add_argument("--matmul", choices=("highest", "medium"), default="highest", help="ours only")
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    size = Size(options.trials, options.epochs, options.evaluations, options.matmul)
    races = []
    with tempfile.TemporaryDirectory(prefix="race-") as temporary:
        for pair in range(options.pairs):
            races.append(race(Path(temporary) / str(pair), size))
            print(report(races, size), flush=True)
    if options.out:
        options.out.write_text(report(races, size))


if __name__ == "__main__":
    main()
