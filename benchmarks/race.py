"""Time to the finished search: ours against the peer in ``plain_tune.py``, in interleaved pairs.

Five methods, six trials each, two slots, 1,000 sentences of SST-2, a small pretrained GPT-2. Random search,
so that both train the same trials; ASHA stops them in both::

    python -m benchmarks.race --pairs 3 --out benchmarks/results/race.md

It needs the real data and models in ``../shared``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from results import load

SHARED = Path(__file__).parents[2] / "shared"


def make_experiment(directory: Path, trials: int) -> Path:
    """Write the experiment that both programs run."""
    data = SHARED / "data" / "sst2"
    values = {
        "name": "race",
        "model": {"path": str(SHARED / "models" / "gpt2-mini-reviews")},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            "train": str(data / "train.tsv"),
            "validation": str(data / "dev.tsv"),
            "max_train_examples": 1000,
        },
        "training": {"epochs": 3, "batch_size": 16, "evaluations_per_epoch": 2},
        "search": {"trials": trials, "sampler": "random"},
        "confirm": {"seeds": 0},
        "resources": {"max_concurrent": 2},
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


def race(directory: Path, trials: int) -> dict[str, Any]:
    """Run both programs once, and return the seconds and the best accuracy by method of each."""
    directory.mkdir()
    file = make_experiment(directory, trials)
    ours = timed("-m", "orchestrator.run", str(file))
    plain = timed("-m", "benchmarks.plain_tune", str(file), "--output", str(directory / "plain.json"))
    found = load(directory / "runs" / "race").trials
    peer = json.loads((directory / "plain.json").read_text())["trials"]
    failed = [trial["error"] for trial in peer if trial["error"]]
    assert not failed, failed[0]
    best: dict[str, float] = {}
    for trial in peer:
        best[trial["method"]] = max(best.get(trial["method"], 0.0), trial["objective"])
    return {
        "ours": ours,
        "plain": plain,
        "ours_best": found.groupby("method").validation_accuracy.max().to_dict(),
        "plain_best": best,
        "ours_evaluations": int(found.evaluations.sum()),
        "plain_evaluations": sum(trial["evaluation"] for trial in peer),
    }


def report(races: list[dict[str, Any]], trials: int) -> str:
    """Write what came out as Markdown."""
    ratios = [one["plain"] / one["ours"] for one in races]
    lines = [
        "# Time to the finished search, against the same libraries used plainly",
        "",
        f"`python -m benchmarks.race --pairs {len(races)} --trials {trials}` on {date.today()}:"
        f" {os.cpu_count()} cores, no GPU, Python {platform.python_version()}. Five methods, {trials} trials"
        " each, 2 slots, 1,000 sentences of SST-2, a GPT-2 of 5.3M parameters.",
        "",
        "| pair | ours, s | plain, s | plain / ours | evaluations, ours and plain |",
        "|---|---|---|---|---|",
        *(
            f"| {i} | {one['ours']:.0f} | {one['plain']:.0f} | {ratio:.2f} | {one['ours_evaluations']} and"
            f" {one['plain_evaluations']} |"
            for i, (one, ratio) in enumerate(zip(races, ratios, strict=True), start=1)
        ),
        "",
        f"Median: {statistics.median(ratios):.2f} times as fast.",
        "",
        "| method | best validation accuracy, ours | plain |",
        "|---|---|---|",
        *(
            f"| {method} | {accuracy:.1%} | {races[-1]['plain_best'][method]:.1%} |"
            for method, accuracy in races[-1]["ours_best"].items()
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
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    races = []
    with tempfile.TemporaryDirectory(prefix="race-") as temporary:
        for pair in range(options.pairs):
            races.append(race(Path(temporary) / str(pair), options.trials))
            print(report(races, options.trials), flush=True)
    if options.out:
        options.out.write_text(report(races, options.trials))


if __name__ == "__main__":
    main()
