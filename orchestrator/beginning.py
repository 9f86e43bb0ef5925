"""What precedes a run's first trial: its settings, cluster, data and base model are read and checked."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.cluster import Cluster, connect, names_cluster
from orchestrator.errors import ExperimentError, located
from orchestrator.experiment import Experiment
from orchestrator.history import NOTHING, Earlier
from orchestrator.loading import load_continued, load_experiment, place_of, with_free_name
from orchestrator.nodes import this_machine
from orchestrator.notices import left_out
from orchestrator.ownership import only_driver
from orchestrator.prepare import Prepared, check_fingerprints, prepare
from orchestrator.reservations import resource_problems
from orchestrator.resume import (
    check_owner,
    earlier_trials,
    growth_problems,
    read_run,
    recorded_trials,
    run_directory,
)
from orchestrator.shared_storage import sharing_problems
from orchestrator.storage import run_directory_problems, storage_problems
from orchestrator.trust import check_trusted
from results.remote import is_uri
from trainables.errors import InputError

if TYPE_CHECKING:
    from orchestrator.mirror import Stamp
    from orchestrator.probing import Fitted


@dataclass(frozen=True)
class Beginning:
    """What a run starts or continues with."""

    experiment: Experiment
    prepared: Prepared
    cluster: Cluster | None  # None if Ray has not been started yet
    earlier: Earlier = NOTHING  # trials of an interrupted run
    fitted: Fitted | None = None  # what ``resources: auto`` has measured


def begin(options: argparse.Namespace, say: Callable[[str], None]) -> Beginning:
    """Check everything that can be checked before the first trial, and return what a new run starts with.

    Arguments:
        options: the command line's.
        say: is told of steps that take long.

    Raises:
        ExperimentError: with all problems of the settings, or else of the cluster, or of data and model.
    """
    where = place_of(options.experiment)
    experiment = load_experiment(options.experiment, options.overrides, _methods(options), options.name)
    with located(where):
        if options.experiment is None and options.name is None:
            experiment = with_free_name(experiment)
        problems = [] if options.dry_run else run_directory_problems(experiment)
        _refuse(*_problems_here(options, experiment, problems))
    cluster = _join(options, experiment, where)
    if options.experiment:  # the built-in comparison names splits that nobody has asked for
        for notice in left_out(experiment.data):
            say(notice)
    with located(where):
        return _fit(Beginning(experiment, prepare(experiment, say), cluster), options, say)


def begin_again(options: argparse.Namespace, say: Callable[[str], None]) -> Beginning:
    """Read an interrupted run, check how its settings change, and return what it continues with.

    Arguments:
        options: the command line's, for which :func:`hold` has been called.
        say: is told of steps that take long.

    Raises:
        ExperimentError: with all problems of the settings, or else of the cluster, or of data and model.
    """
    where = options.resume
    recorded = read_run(options.resume)
    check_trusted(recorded, options.overrides, where)
    experiment = load_continued(recorded, options.experiment, options.overrides, _methods(options))
    with located(str(options.experiment or where)):
        _refuse(*growth_problems(recorded, experiment))
    with located(where):
        problems = [] if options.dry_run else storage_problems(experiment)
        _refuse(*_problems_here(options, experiment, problems))
    cluster = _join(options, experiment, where)
    records = recorded_trials(experiment.run_directory)
    with located(where):
        prepared = prepare(experiment, say)
        if records:
            check_fingerprints(records[0].trial, prepared)
    earlier = earlier_trials(experiment.run_directory, experiment, records, prepared.data.labels)
    done, going_on = len(earlier.finished), len(earlier.unfinished)
    said = f"{where}: {done} {'trial is' if done == 1 else 'trials are'} done"
    say(f"{said}, {going_on} {'goes' if going_on == 1 else 'go'} on" if going_on else said)
    with located(where):
        return _fit(Beginning(experiment, prepared, cluster, earlier), options, say)


def hold(options: argparse.Namespace, held: ExitStack) -> dict[str, Stamp | None]:
    """Lock a run that is to be continued; if it is at a URI, fetch it and return what ``fetch`` returns.

    A dry run locks only the copy of a run at a URI, and removes that copy afterwards if it is new.

    Arguments:
        options: the command line's; ``resume`` names the run.
        held: is given what unlocks the run.

    Raises:
        ExperimentError: if it is not a run, belongs to another user, or another process runs it.
    """
    directory = run_directory(options.resume)
    if is_uri(options.resume):
        from orchestrator.fetch import fetch

        if options.dry_run and not directory.exists():
            held.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_driver(directory))
        there = fetch(options.resume, directory, tidies=not options.dry_run)
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


def _problems_here(
    options: argparse.Namespace, experiment: Experiment, known: Sequence[InputError]
) -> list[InputError]:
    """Return what is wrong with settings as this machine can tell, without Ray, with what is known to be."""
    problems = list(known)
    if not names_cluster(options.address):
        problems += resource_problems(experiment.resources, [this_machine()])
    if experiment.logging.wanted:  # else Tune's loggers are not imported
        from orchestrator.loggers import logger_problems

        # Reaching a logger leaves traces there, which a run that is refused must not.
        problems += logger_problems(experiment, reach=not options.dry_run and not problems)
    return problems


def _join(options: argparse.Namespace, experiment: Experiment, where: str) -> Cluster | None:
    """Join the cluster, if one is named, and refuse trials that it has no room for.

    On this machine Ray starts after all checks, unless memory matters: only Ray knows how much of it workers
    have.
    """
    resources, joins = experiment.resources, names_cluster(options.address)
    if not joins and not resources.auto and resources.memory_per_trial is None:
        return None
    cluster = connect(options.address)
    with located(where):
        _refuse(*resource_problems(resources, cluster.nodes, cluster.to_come))
        if joins and not options.dry_run:
            _refuse(*sharing_problems(experiment))
    return cluster


def _refuse(*problems: str | InputError) -> None:
    """Raise what is wrong, if anything is."""
    if problems:
        raise ExperimentError(*problems)


def _fit(beginning: Beginning, options: argparse.Namespace, say: Callable[[str], None]) -> Beginning:
    """Measure what trials need if ``resources: auto`` asks for it, before the run directory is created."""
    if not beginning.experiment.resources.auto:
        return beginning
    from orchestrator.probing import fit_resources

    assert beginning.cluster is not None
    fitted = fit_resources(beginning.experiment, beginning.prepared, beginning.cluster, say)
    if not options.dry_run:
        for line in fitted.lines:
            say(line)
    return replace(beginning, experiment=fitted.experiment, fitted=fitted)


def _methods(options: argparse.Namespace) -> list[str] | None:
    return None if options.methods is None else [name.strip() for name in options.methods.split(",")]
