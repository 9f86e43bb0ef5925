"""What the person at the terminal sees: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.experiment import Experiment
from orchestrator.rows import TrialHistory

SHORT_NAMES = {"learning_rate": "lr"}

FAILURES = ("diverged", "out_of_memory", "failed")


class Display:
    """Show a search while it runs.

    Arguments:
        console: where to.
        experiment: what runs.
        finished: trials that need not run again.
    """

    def __init__(
        self, console: Console, experiment: Experiment, finished: Sequence[TrialHistory] = ()
    ) -> None:
        self._console = console
        self._methods = list(experiment.methods)
        self._planned = experiment.search.trials
        self._evaluations = {method: experiment.most_evaluations(method) for method in self._methods}
        self._trials = {trial.spec.trial_id: trial for trial in finished}
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("trials"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task(
            "trials", total=self._planned * len(self._methods), completed=len(self._trials)
        )
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(self._view(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.update(self._view())
            self._live.stop()

    def changed(self, trial: TrialHistory) -> None:
        """Take in a trial's newest state."""
        self._trials[trial.spec.trial_id] = trial
        done = sum(self._share_done(history) for history in self._trials.values())
        self._progress.update(self._task, completed=round(done, 2))
        if self._live:
            self._live.update(self._view())
        elif trial.status != "running":
            self._print_line(trial)

    def _share_done(self, trial: TrialHistory) -> float:
        if trial.status != "running":
            return 1.0
        return len(trial.curve) / self._evaluations[trial.spec.method]

    def _print_line(self, trial: TrialHistory) -> None:
        ended = sum(history.status != "running" for history in self._trials.values())
        score = f"{trial.best.validation_accuracy:.1%}" if trial.best else trial.error or ""
        elapsed = time.monotonic() - self._started
        self._console.print(
            f"[{ended}/{self._planned * len(self._methods)}] {elapsed:5.0f} s  {trial.spec.trial_id}"
            f"  {trial.status}  {score}  {describe_hyperparameters(trial.assignment.hyperparameters)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("method", "done", "running", "failed"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        table.add_column("best accuracy", justify="right")
        table.add_column("its configuration", overflow="ellipsis", no_wrap=True)
        for method in self._methods:
            table.add_row(method, *self._cells(method))
        return Group(table, self._progress)

    def _cells(self, method: str) -> tuple[str, ...]:
        mine = [trial for trial in self._trials.values() if trial.spec.method == method]
        failed = sum(trial.status in FAILURES for trial in mine)
        running = sum(trial.status == "running" for trial in mine)
        done = f"{len(mine) - running - failed}/{self._planned}"
        counts = (done, str(running or ""), str(failed or ""))
        scored = [trial for trial in mine if trial.best and trial.status not in FAILURES]
        if not scored:
            return (*counts, "", "")
        best = min(scored, key=lambda trial: trial.rank)
        assert best.best is not None
        accuracy = f"{best.best.validation_accuracy:.1%}"
        return (*counts, accuracy, describe_hyperparameters(best.assignment.hyperparameters))


def describe_hyperparameters(hyperparameters: Mapping[str, Any]) -> str:
    """Write ``rank 8, alpha 16, lr 0.0003``."""
    return ", ".join(
        f"{SHORT_NAMES.get(name, name)} {_short(value)}" for name, value in hyperparameters.items()
    )


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def final_table(experiment_methods: Sequence[str], trials: Sequence[TrialHistory]) -> Table:
    """Build the table across methods: each method's best trial by validation accuracy, and its cost."""
    table = Table(
        title="Best trial of each method, by validation accuracy",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("method")
    for heading in ("trials", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("hyperparameters", overflow="fold", ratio=1)
    for heading in ("trainable", "model MB", "peak MB", "train s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method in experiment_methods:
        mine = [trial for trial in trials if trial.spec.method == method]
        failed = sum(trial.status in FAILURES for trial in mine)
        count = f"{len(mine)}" + (f" ({failed} failed)" if failed else "")
        scored = [trial for trial in mine if trial.best and trial.status not in FAILURES]
        if not scored:
            table.add_row(method, count, "-", "no trial finished", "-", "-", "-", "-")
            continue
        best = min(scored, key=lambda trial: trial.rank)
        assert best.best is not None
        last = best.curve[-1]
        peak = f"{last.peak_memory_bytes / 1e6:,.0f}" if last.peak_memory_bytes else "-"
        table.add_row(
            method,
            count,
            f"{best.best.validation_accuracy:.1%}",
            describe_hyperparameters(best.assignment.hyperparameters),
            f"{last.trainable_parameters:,}",
            f"{last.model_bytes / 1e6:,.1f}",
            peak,
            f"{last.train_seconds:,.1f}",
        )
    return table


def time_spent(trials: Sequence[TrialHistory], slots: int, started: float, seconds: float) -> str:
    """Say where ``slots x seconds`` went, as fractions.

    Arguments:
        trials: all trials of the phase.
        slots: trials that ran at once.
        started: POSIX time at which the phase started.
        seconds: wall time of the phase.
    """
    startup = min(trial.started_at.timestamp() for trial in trials if trial.started_at) - started
    last = [trial.curve[-1] for trial in trials if trial.curve]
    total = slots * seconds
    parts = {
        "training": sum(point.train_seconds for point in last),
        "evaluation": sum(point.evaluation_seconds for point in last),
        "trial set-up": sum(point.setup_seconds for point in last),
        "worker start-up": slots * startup,
    }
    parts["waiting"] = max(0.0, total - sum(parts.values()))
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
    return f"{seconds:.0f} s x {slots} slots: {shares}"
