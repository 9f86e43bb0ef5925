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

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cluster import Cluster
    from orchestrator.experiment import Experiment
    from orchestrator.history import Earlier
    from orchestrator.mirror import Stamp
    from orchestrator.prepare import Prepared
    from orchestrator.probing import Fitted

EXAMPLES = """\
examples:
  python -m orchestrator.run
      the built-in comparison: no download, a few minutes at first, then about one
  python -m orchestrator.run experiments/sst2.yaml --dry-run
      check everything and print the plan
  python -m orchestrator.run experiments/sst2.yaml --methods lora,full --set search.trials=20
  python -m orchestrator.run experiments/sst2.yaml --name local \\
      --set data.train=train.tsv --set data.validation=dev.tsv --set 'data.columns=[sentence, label]'
      the same experiment on files of your own
  python -m orchestrator.run --resume runs/sst2-gpt2
      continue a run that was interrupted: trials that ended are kept, others go on
  python -m orchestrator.run --resume runs/sst2-gpt2 --set search.trials=40
      the same run, longer: trials, seeds, budgets and methods may grow
  python -m orchestrator.run --reproduce runs/sst2-gpt2 lora-003
      train one recorded trial again and say whether it came out the same
  python -m orchestrator.run experiments/sst2.yaml --address auto --set storage=/mnt/shared/runs
      on the Ray cluster that this machine is a node of; docs/cluster.md says more

Results are Parquet files: pandas.read_parquet("runs/NAME/trials.parquet").
Exit status: 0 done, 1 a reproduction that differs or no trial finished, 2 wrong input, 130 interrupted.
"""

TRUST = "model.trust_remote_code=true"
"""The one setting that --reproduce does not take from the run, which somebody may have sent."""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
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
        "--dry-run", action="store_true", help="check everything, print the plan, run nothing"
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
    trusts = bool(options.reproduce) and options.overrides == [TRUST]
    changes = options.overrides and not trusts
    if options.reproduce and (options.experiment or changes or options.methods or options.resume):
        parser.error("--reproduce takes everything from the run; expected no experiment and no settings")
    if options.reproduce and options.address:
        parser.error("--reproduce trains on this machine; expected no --address")
    if options.name and (options.resume or options.reproduce):
        parser.error("--name: the run has its name already; expected none")
    # Imported after parsing, so that --help and a mistyped option answer at once.
    from orchestrator.errors import ExperimentError

    try:
        if options.reproduce:
            run, trial_id = options.reproduce
            return _reproduce(run, trial_id, trusts)
        if (options.address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
            return _run_on_head(options)
        return _run(options)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the search began; nothing was written", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from orchestrator.quiet import quiet

    with tempfile.TemporaryFile() as chatter, ExitStack() as held:
        with quiet(chatter) as console:
            # Imported here, where what libraries print goes to the log.
            from orchestrator.ownership import make_run_directory, only_driver, write_experiment

            there = _hold(options, held) if options.resume else {}
            prepare = _prepare_again if options.resume else _prepare
            experiment, prepared, earlier, cluster = prepare(options, console)
            fitted = None
            if experiment.resources.auto:
                assert cluster is not None
                fitted = _fit(experiment, prepared, cluster, options, console)
                experiment = fitted.experiment
            if options.dry_run:
                from orchestrator.plan import plan, render

                console.print(render(experiment, prepared, plan(experiment, prepared), fitted))
                return 0
        directory = experiment.run_directory
        if options.resume:
            write_experiment(experiment, directory)
        else:
            make_run_directory(experiment, str(options.experiment or "built-in experiment"))
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
                    try:
                        from orchestrator.comparison import run_comparison

                        gc.freeze()  # what is here stays; what a run leaves behind is looked for
                        gc.set_threshold(DRIVER_GARBAGE)
                        return run_comparison(experiment, prepared, earlier, cluster, mirror, console)
                    except KeyboardInterrupt:
                        command = f"python -m orchestrator.run --resume {shlex.quote(experiment.location)}"
                        said = f"interrupted; what finished is kept. Continue with: {command}"
                        console.print(said, highlight=False, soft_wrap=True)
                        return 130
        finally:
            if mirror:
                mirror.finish(print)


def _hold(options: argparse.Namespace, held: ExitStack) -> dict[str, Stamp | None]:
    """Take hold of a run that is to be continued; return what of its copy is at its URI, if it has one."""
    from orchestrator.ownership import only_driver
    from orchestrator.resume import check_owner, read_run, run_directory
    from results.remote import is_uri

    directory = run_directory(options.resume)
    if is_uri(options.resume):
        from orchestrator.mirror import fetch

        directory.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_driver(directory))
        there = fetch(options.resume, directory)
        if not (directory / "experiment.json").exists():
            shutil.rmtree(directory)
        read_run(options.resume)
        return there
    read_run(options.resume)
    if not options.trust_owner:
        check_owner(directory)
    if not options.dry_run:
        held.enter_context(only_driver(directory))
    return {}


def _fit(
    experiment: Experiment,
    prepared: Prepared,
    cluster: Cluster,
    options: argparse.Namespace,
    console: Console,
) -> Fitted:
    """Measure what trials need, before the run's directory is there."""
    from orchestrator.probing import fit_resources

    where = str(options.experiment or "built-in experiment")
    fitted = fit_resources(experiment, prepared, cluster, console.print, where)
    if not options.dry_run:
        for line in fitted.lines:
            console.print(line, highlight=False)
    return fitted


def _run_on_head(options: argparse.Namespace) -> int:
    from orchestrator.quiet import quiet

    with tempfile.TemporaryFile() as chatter, quiet(chatter) as console:
        from orchestrator.client import run_on_head

        return run_on_head(options, lambda text: console.out(text, end="", highlight=False))


def _prepare(
    options: argparse.Namespace, console: Console
) -> tuple[Experiment, Prepared, Earlier, Cluster | None]:
    """Check everything that can be checked before Ray starts on this machine, or the cluster is used."""
    from orchestrator.history import Earlier
    from orchestrator.loading import load_experiment, with_free_name
    from orchestrator.prepare import check_run_directory, prepare
    from orchestrator.storage import check_storage

    where = str(options.experiment or "built-in experiment")
    experiment = load_experiment(options.experiment, options.overrides, _methods(options), options.name)
    if not options.dry_run:
        check_storage(experiment, where)
    if options.experiment is None and options.name is None:
        experiment = with_free_name(experiment)
    if not options.dry_run:
        check_run_directory(experiment, where)
    _check_loggers(experiment, where, reach=not options.dry_run)
    cluster = _join(options, experiment, where)
    return experiment, prepare(experiment, console.print, where), Earlier(), cluster


def _prepare_again(
    options: argparse.Namespace, console: Console
) -> tuple[Experiment, Prepared, Earlier, Cluster | None]:
    """Read what an interrupted run was, what it shall be now, and what it had begun."""
    from orchestrator.loading import load_continued
    from orchestrator.prepare import check_fingerprints, prepare
    from orchestrator.resume import check_growth, earlier_trials, read_run, recorded_trials
    from orchestrator.storage import check_storage

    where = options.resume
    recorded = read_run(options.resume)
    experiment = load_continued(recorded, options.experiment, options.overrides, _methods(options))
    check_growth(recorded, experiment, str(options.experiment or where))
    if not options.dry_run:
        check_storage(experiment, where)
    _check_loggers(experiment, where, reach=True)
    cluster = _join(options, experiment, where)
    prepared = prepare(experiment, console.print, where)
    records = recorded_trials(experiment.run_directory)
    if records:
        check_fingerprints(records[0].trial, prepared, where)
    earlier = earlier_trials(experiment.run_directory, experiment, records, prepared.data.labels)
    done, going_on = len(earlier.finished), len(earlier.unfinished)
    said = f"{where}: {done} trials are done" + (f", {going_on} go on" if going_on else "")
    console.print(said, highlight=False)
    return experiment, prepared, earlier, cluster


def _methods(options: argparse.Namespace) -> list[str] | None:
    return [name.strip() for name in options.methods.split(",")] if options.methods else None


def _check_loggers(experiment: Experiment, where: str, reach: bool) -> None:
    """Refuse logging that cannot work; Tune's loggers are loaded only where one is asked for."""
    if experiment.logging.wanted:
        from orchestrator.loggers import check_loggers

        check_loggers(experiment, where, reach)


def _join(options: argparse.Namespace, experiment: Experiment, where: str) -> Cluster | None:
    """Join the cluster, where one is named, and refuse what it or this machine has no room for.

    On this machine Ray starts after all checks, but where memory matters: how much there is for workers, Ray
    says.
    """
    from orchestrator.cluster import connect, names_cluster
    from orchestrator.nodes import node_types, this_machine
    from orchestrator.reservations import check_resources
    from orchestrator.shared_storage import check_shared

    joins = names_cluster(options.address)
    if not joins:
        check_resources(experiment, [this_machine()], where)
        if not experiment.resources.auto and experiment.resources.memory_per_trial is None:
            return None
    cluster = connect(options.address)
    check_resources(experiment, [*cluster.nodes, *node_types()], where)
    if joins and not options.dry_run:
        check_shared(experiment, where)
    return cluster


def _reproduce(run: str, trial_id: str, trusts: bool) -> int:
    from orchestrator.quiet import quiet

    with tempfile.TemporaryFile() as chatter, quiet(chatter) as console:
        from orchestrator.reproduce import reproduce

        outcome = reproduce(run, trial_id, console.print, trusts)
    if not outcome.differences:
        print(f"{trial_id}: the same numbers in all {outcome.evaluations} evaluations")
        return 0
    print(f"{trial_id}: not the same")
    print("\n".join(outcome.differences))
    return 1


if __name__ == "__main__":
    status = main()
    gc.freeze()  # Python would look for garbage among all that was imported, once more
    sys.exit(status)
