"""``python -m orchestrator.run``: parse, validate, run the phases, print the verdict, write the report."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import DRIVER_GARBAGE
from orchestrator.errors import ExperimentError
from orchestrator.trust import TRUST

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.beginning import Beginning
    from orchestrator.mirror import Mirror

EXAMPLES = """\
examples:
  python -m orchestrator.run
      the built-in comparison: no download, a few minutes at first, then about one
  python -m orchestrator.run experiments/sst2.yaml --dry-run
      check settings, data and model, and print the plan
  python -m orchestrator.run experiments/sst2.yaml --methods lora,full --set search.trials=20
  python -m orchestrator.run experiments/sst2.yaml --name local \\
      --set data.train=train.tsv --set data.validation=dev.tsv --set 'data.columns=[sentence, label]'
      the same experiment on files of your own
  python -m orchestrator.run --resume runs/sst2-gpt2
      continue a run that was interrupted: trials that ended are kept, others continue
  python -m orchestrator.run --resume runs/sst2-gpt2 --set search.trials=40
      the same run, longer: trials, seeds, budgets and methods may grow
  python -m orchestrator.run --reproduce runs/sst2-gpt2 lora-003
      train one recorded trial again and say whether it comes out the same
  python -m orchestrator.run experiments/sst2.yaml --address auto --set storage=/mnt/shared/runs
      on the Ray cluster that this machine is a node of; docs/cluster.md says more

Results are Parquet files: pandas.read_parquet("runs/NAME/trials.parquet").
Exit status: 0 done, 1 a reproduction that differs or no trial finished, 2 wrong input, 130 interrupted.
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.run",
        description="Compare ways to fine-tune a model: search each method's hyperparameters under equal "
        "budgets and collect every trial's metrics and costs in Parquet files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiment", nargs="?", type=Path, help="YAML file; without it, the built-in comparison"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, such as search.trials=20 or methods.lora.rank=[4,8]; may be repeated",
    )
    parser.add_argument("--methods", metavar="A,B", help="only these of the experiment's methods")
    parser.add_argument("--name", help="name of the run; its directory is STORAGE/NAME")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings, data and model, and print the plan; resources: auto measures memory",
    )
    parser.add_argument(
        "--address",
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="join this Ray cluster (also RAY_ADDRESS); without it, Ray starts on this machine",
    )
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this directory, a path or a URI")
    parser.add_argument(
        "--trust-owner", action="store_true", help="resume a run in the directory of another user"
    )
    parser.add_argument(
        "--reproduce",
        nargs=2,
        metavar=("RUN", "TRIAL"),
        help="train a recorded trial again from its row and compare the numbers",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    changes = [override for override in options.overrides if override != TRUST]
    if options.reproduce and (options.experiment or changes or options.methods or options.resume):
        parser.error("--reproduce takes everything from the run; expected no experiment and no settings")
    if options.reproduce and options.address:
        parser.error("--reproduce trains on this machine; expected no --address")
    if options.name and (options.resume or options.reproduce):
        parser.error("--name: the run already has a name; expected none")
    if options.experiment and not os.path.exists(options.experiment):
        print(f"{options.experiment}: no such file; expected an experiment's YAML file", file=sys.stderr)
        return 2
    try:
        if options.reproduce:
            return _reproduce(options)
        if (options.address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
            return _run_on_head(options)
        return _run(options)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        early = "interrupted before the search began; nothing was written"
        print("interrupted" if options.reproduce else early, file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from orchestrator.quiet import printer, quiet

    with tempfile.TemporaryFile() as chatter, ExitStack() as held:
        with quiet(chatter) as console:
            # Imported here, where libraries' output goes to the log.
            from orchestrator.beginning import begin, begin_again, hold
            from orchestrator.loading import place_of
            from orchestrator.ownership import make_run_directory, only_driver, write_experiment

            there = hold(options, held) if options.resume else None
            beginning = (begin_again if options.resume else begin)(options, printer(console))
            if options.dry_run:
                from orchestrator.plan import render

                console.print(render(beginning))
                return 0
        experiment = beginning.experiment
        directory = experiment.run_directory
        if options.resume:
            write_experiment(experiment, directory)
        else:
            make_run_directory(experiment, place_of(options.experiment))
            held.enter_context(only_driver(directory))
        mirror = None
        if experiment.uri:
            from orchestrator.mirror import Mirror

            mirror = Mirror(directory, experiment.uri, there)
        try:
            with open(directory / "log.txt", "ab") as log:
                chatter.seek(0)
                shutil.copyfileobj(chatter, log)
                log.flush()
                with quiet(log) as console:
                    return _compare(beginning, mirror, console)
        finally:
            if mirror:
                mirror.finish(print)


def _compare(beginning: Beginning, mirror: Mirror | None, console: Console) -> int:
    from orchestrator.quiet import printer

    try:
        from orchestrator.comparison import run_comparison

        gc.freeze()  # what exists now stays; only a run's own garbage is collected
        gc.set_threshold(DRIVER_GARBAGE)
        return run_comparison(beginning, mirror, console)
    except KeyboardInterrupt:
        experiment = beginning.experiment
        command = f"python -m orchestrator.run --resume {shlex.quote(experiment.location)}"
        command += f" --set {TRUST}" if experiment.model.trust_remote_code else ""
        printer(console)(f"interrupted; what finished is kept. Continue with: {command}")
        return 130


def _run_on_head(options: argparse.Namespace) -> int:
    from orchestrator.quiet import quiet

    with tempfile.TemporaryFile() as chatter, quiet(chatter) as console:
        from orchestrator.client import run_on_head

        return run_on_head(options, lambda text: console.out(text, end=""))


def _reproduce(options: argparse.Namespace) -> int:
    from orchestrator.quiet import printer, quiet

    with tempfile.TemporaryFile() as chatter, quiet(chatter) as console:
        from orchestrator.reproduce import reproduce

        run, trial_id = options.reproduce
        outcome = reproduce(run, trial_id, printer(console), options.overrides)
    if not outcome.differences:
        print(f"{trial_id}: the same numbers in all {outcome.evaluations} evaluations")
        return 0
    print(f"{trial_id}: not the same")
    print("\n".join(outcome.differences))
    return 1


if __name__ == "__main__":
    status = main()
    gc.freeze()  # else Python would search all that was imported for garbage once more
    sys.exit(status)
