"""What the person at the terminal sees: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.experiment import Experiment
from orchestrator.rows import TrialHistory
from results.analysis.summary import FAILURES
from results.show import describe_hyperparameters


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
        self._budget = experiment.budget
        self._planned = experiment.search.trials
        self._seeds = experiment.confirm.seeds
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
        each = self._planned + self._seeds
        self._task = self._progress.add_task("trials", total=each * len(self._methods))
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            # What others print goes to the log, and Live would bring it back here.
            self._live = Live(
                self._view(),
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.update(self._view())
            self._live.stop()

    def changed(self, trial: TrialHistory) -> None:
        """Take in a trial's newest state."""
        self._trials[trial.spec.trial_id] = trial
        self._progress.update(self._task, completed=round(sum(map(self._done, self._methods)), 2))
        if self._live:
            self._live.update(self._view())
        elif trial.status != "running":
            self._print_line(trial)

    def _done(self, method: str) -> float:
        """Return a method's work done, in trials; a purse is worth as many as were planned without one."""
        search, confirm = (self._of(method, phase) for phase in ("search", "confirm"))
        in_search = sum(map(self._share_done, search))
        if self._budget.unit:
            last = [trial.curve[-1] for trial in search if trial.curve]
            spent = sum(getattr(point, self._budget.unit) for point in last)
            in_search = self._planned * min(1.0, spent / self._budget.limit)
        return in_search + sum(map(self._share_done, confirm))

    def _share_done(self, trial: TrialHistory) -> float:
        if trial.status != "running":
            return 1.0
        return len(trial.curve) / self._evaluations[trial.spec.method]

    def _of(self, method: str, phase: str) -> list[TrialHistory]:
        return [
            trial
            for trial in self._trials.values()
            if trial.spec.method == method and trial.assignment.phase == phase
        ]

    def _print_line(self, trial: TrialHistory) -> None:
        ended = sum(history.status != "running" for history in self._trials.values())
        planned = "" if self._budget.unit else f"/{(self._planned + self._seeds) * len(self._methods)}"
        score = f"{trial.best.validation_accuracy:.1%}" if trial.best else trial.error or ""
        if trial.test:
            score += f" (test {trial.test.accuracy:.1%})"
        elapsed = time.monotonic() - self._started
        self._console.print(
            f"[{ended}{planned}] {elapsed:5.0f} s  {trial.spec.trial_id}"
            f"  {trial.status}  {score}  {describe_hyperparameters(trial.assignment.hyperparameters)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("method")
        for heading in ("done", "running", "failed", *(["confirmed"] if self._seeds else [])):
            table.add_column(heading, justify="right")
        table.add_column("best accuracy", justify="right")
        table.add_column("its configuration", overflow="ellipsis", no_wrap=True)
        for method in self._methods:
            table.add_row(method, *self._cells(method))
        return Group(table, self._progress)

    def _cells(self, method: str) -> tuple[str, ...]:
        search, confirm = (self._of(method, phase) for phase in ("search", "confirm"))
        failed = sum(trial.status in FAILURES for trial in search + confirm)
        running = sum(trial.status == "running" for trial in search + confirm)
        ended = sum(trial.status not in ("running", *FAILURES) for trial in search)
        confirmed = sum(trial.status == "completed" for trial in confirm)
        counts = [f"{ended}" if self._budget.unit else f"{ended}/{self._planned}"]
        counts += [str(running or ""), str(failed or "")]
        counts += [f"{confirmed}/{self._seeds}"] if self._seeds else []
        scored = [trial for trial in search if trial.best and trial.status not in FAILURES]
        if not scored:
            return (*counts, "", "")
        best = min(scored, key=lambda trial: trial.rank)
        assert best.best is not None
        accuracy = f"{best.best.validation_accuracy:.1%}"
        return (*counts, accuracy, describe_hyperparameters(best.assignment.hyperparameters))


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
