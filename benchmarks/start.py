"""How long the command takes to answer: ``--help``, and ``--dry-run`` on a local model.

    python -m benchmarks.start --out benchmarks/results/start.md

A dry run reads and tokenizes the data and loads the model. Needs the real data and models in ``../shared``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.race import Size, make_experiment, timed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-") as temporary:
        experiment = make_experiment(Path(temporary), Size(trials=6, epochs=1, evaluations=3))
        commands = {"--help": ["--help"], "--dry-run": [str(experiment), "--dry-run"]}
        rounds = [
            {name: timed("-m", "orchestrator.run", *command) for name, command in commands.items()}
            for _ in range(options.rounds)
        ]
    text = report(rounds)
    print(text)
    if options.out:
        options.out.write_text(text)


def report(rounds: list[dict[str, float]]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# How long the command takes to answer",
        "",
        f"{machine()}: `python -m benchmarks.start`, {len(rounds)} rounds of both. The dry run is of a GPT-2"
        " of 5.3M parameters in a local directory and of SST-2 in local files, five methods.",
        "",
        "| command | seconds, median (least to most) |",
        "|---|---|",
    ]
    for name in rounds[0]:
        seconds = [one[name] for one in rounds]
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        lines.append(f"| `python -m orchestrator.run {name}` | {median:.2f} ({least:.2f} to {most:.2f}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
