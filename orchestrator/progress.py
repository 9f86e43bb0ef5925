"""What the user at the terminal sees: a live table, or plain lines if there is no terminal."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.experiment import Experiment
from orchestrator.history import TrialHistory
from orchestrator.tally import Tally
from results.hyperparameters import describe_hyperparameters
from results.schema import ENDED_WELL, FAILED


class Display:
    """Show both phases while they run.

    Arguments:
        console: where it is shown.
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
        self._tally = Tally()
        self._spent: dict[str, float] = defaultdict(float)  # of the budget, in the search
        self._best: dict[str, TrialHistory] = {}  # of each method, in the search
        for trial in finished:
            self._note(trial)
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
            # Other output goes to the log, and Live would bring it back here.
            self._live = Live(
                get_renderable=self._view,
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def changed(self, trial: TrialHistory) -> None:
        """Record a trial's newest state."""
        self._note(trial)
        self._progress.update(self._task, completed=round(sum(map(self._done, self._methods)), 2))
        if not self._live and trial.status != "running":
            self._print_line(trial)

    def _note(self, trial: TrialHistory) -> None:
        before, method = self._tally.note(trial), trial.spec.method
        if trial.assignment.phase == "search":
            self._spent[method] += self._cost(trial) - (self._cost(before) if before else 0.0)
            self._note_best(method, trial)

    def _note_best(self, method: str, trial: TrialHistory) -> None:
        best = self._best.get(method)
        if best and best.spec.trial_id == trial.spec.trial_id and trial.status in FAILED:
            others = [one for one in self._tally.trials.values() if one.assignment.phase == "search"]
            candidates: Iterable[TrialHistory] = [one for one in others if one.spec.method == method]
            self._best.pop(method)
        else:
            candidates = [trial, *([best] if best else [])]
        scored = [one for one in candidates if one.best and one.status not in FAILED]
        if scored:
            self._best[method] = min(scored, key=lambda one: one.standing)

    def _cost(self, trial: TrialHistory) -> float:
        return getattr(trial.curve[-1], self._budget.unit) if self._budget.unit and trial.curve else 0.0

    def _done(self, method: str) -> float:
        """Return a method's work done, in trials; a whole budget counts as the trials planned without one."""
        search, confirm = (self._work(method, phase) for phase in ("search", "confirm"))
        if self._budget.unit:
            search = self._planned * min(1.0, self._spent[method] / self._budget.limit)
        return search + confirm

    def _work(self, method: str, phase: str) -> float:
        counts = self._tally.statuses[method, phase]
        shares = (
            len(trial.curve) / self._evaluations[method]
            for trial in self._tally.running.values()
            if (trial.spec.method, trial.assignment.phase) == (method, phase)
        )
        return counts.total() - counts["running"] + sum(shares)

    def _print_line(self, trial: TrialHistory) -> None:
        ended = len(self._tally.trials) - len(self._tally.running)
        planned = "" if self._budget.unit else f"/{(self._planned + self._seeds) * len(self._methods)}"
        score = f"{trial.best.validation_accuracy:.1%}" if trial.best else trial.error or ""
        if trial.test:
            score += f" (test {trial.test.accuracy:.1%})"
        elapsed = time.monotonic() - self._started
        self._console.print(
            f"[{ended}{planned}] {elapsed:5.0f} s  {trial.spec.trial_id}"
            f"  {trial.status}  {score}  {describe_hyperparameters(trial.assignment.hyperparameters)}",
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
        search, confirm = (self._tally.statuses[method, phase] for phase in ("search", "confirm"))
        failed = sum(search[status] + confirm[status] for status in FAILED)
        running = search["running"] + confirm["running"]
        ended = sum(search[status] for status in (*ENDED_WELL, "interrupted"))
        counts = [f"{ended}" if self._budget.unit else f"{ended}/{self._planned}"]
        counts += [str(running or ""), str(failed or "")]
        counts += [f"{confirm['completed']}/{self._seeds}"] if self._seeds else []
        best = self._best.get(method)
        if best is None or best.best is None:
            return (*counts, "", "")
        accuracy = f"{best.best.validation_accuracy:.1%}"
        return (*counts, accuracy, describe_hyperparameters(best.assignment.hyperparameters))


def time_spent(trials: Sequence[TrialHistory], slots: int, started: float, seconds: float) -> str:
    """Say where ``slots x seconds`` went, as fractions.

    Arguments:
        trials: all trials that ran, of both phases.
        slots: trials, or packs, that ran at once.
        started: POSIX time at which the phases started.
        seconds: wall time since then.
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
