"""Both phases as one Ray Tune experiment: workers stay warm, and no slot waits for the slowest trial."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.air._internal import usage
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from orchestrator.brackets import MethodBrackets, make_brackets
from orchestrator.budget import MethodBudgets
from orchestrator.confirm import confirm_trials
from orchestrator.experiment import Assignment
from orchestrator.limiter import RoomLimiter
from orchestrator.lost_workers import count_lost_workers
from orchestrator.packs import PackedTrialWorker, open_packs
from orchestrator.recorder import Recorder
from orchestrator.reports import OBJECTIVE
from orchestrator.reservations import trial_bundles
from orchestrator.secrets import is_secret
from orchestrator.studies import MethodStudies, make_studies
from orchestrator.train_workers import MultiProcessTrialWorker
from orchestrator.worker import Inputs

TUNE_ENVIRONMENT = {
    # We have loggers and reports of our own; the result of a failed trial lacks the metric.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    # A run is continued from its journal alone; Tune would rewrite its own state every ten seconds.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Phases(Searcher):
    """Suggest the trials of both phases; a method's confirm phase follows once its search has ended.

    Arguments:
        studies: of the search phase.
        recorder: knows how trials ended, and which trials an earlier process had begun.
        seeds: number of seeds in the confirm phase.
    """

    def __init__(self, studies: MethodStudies, recorder: Recorder, seeds: int) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._studies = studies
        self._recorder = recorder
        self._seeds = seeds
        self._unconfirmed = list(studies.methods)  # methods whose search has not ended
        self._waiting: list[Assignment] = []
        self._confirming: set[str] = set()  # by Tune's id

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    @property
    def is_done(self) -> bool:
        """Whether every trial of both phases has been suggested and has ended."""
        self._plan_confirmation()
        return self._studies.is_done and not self._waiting and not self._confirming

    def suggest(self, trial_id: str) -> Mapping[str, Any] | str | None:  # type: ignore[override]
        if searching := self._studies.suggest(trial_id):
            return searching.to_config()
        self._plan_confirmation()
        if self._waiting:
            self._confirming.add(trial_id)
            return self._waiting.pop(0).to_config()
        # A running trial may be the last of its method's search.
        return None if self._unconfirmed else Searcher.FINISHED

    def _plan_confirmation(self) -> None:
        """Queue what is missing from the confirm phase of methods whose search has ended.

        Confirm trials of what is no longer the best, as after a search has grown, are forgotten.
        """
        for method in [one for one in self._unconfirmed if self._studies.has_ended(one)]:
            self._unconfirmed.remove(method)
            planned = confirm_trials(self._recorder.of_phase("search"), method, self._seeds)
            begun = [*self._recorder.of_phase("confirm"), *self._recorder.unfinished("confirm")]
            stale = [
                trial for trial in begun if trial.spec.method == method and trial.assignment not in planned
            ]
            self._recorder.forget(stale)
            done = {trial.spec.trial_id for trial in self._recorder.of_phase("confirm")}
            self._waiting += [trial for trial in planned if trial.trial_id not in done]
        # Methods take turns, as in the search.
        self._waiting.sort(key=lambda trial: (trial.number, -self._studies.expected_seconds(trial.method)))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in self._confirming:
            self._studies.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._confirming:
            self._confirming.remove(trial_id)
        else:
            self._studies.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the only state a run needs."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a run is continued from its journal, not from Ray's state files")


def run_phases(
    inputs: Inputs, recorder: Recorder, concurrent: int | None, callbacks: Sequence[tune.Callback] = ()
) -> bool:
    """Run the trials of both phases until they end or are interrupted; say whether all have ended.

    Arguments:
        inputs: what trials read.
        recorder: journals what trials report. Of the earlier trials it knows, those that ended do not run
            again and the others continue; studies, brackets and budgets are told of all.
        concurrent: most trials at once; None is what the cluster has room for. Suggestions wait for a free
            slot, so that with one slot each study has seen all its earlier results, and the run is
            deterministic.
        callbacks: Tune callbacks besides the recorder.
    """
    _prepare_tune()
    experiment, resources = inputs.experiment, inputs.experiment.resources
    budgets = MethodBudgets(experiment.budget) if experiment.budget.unit else None
    studies, brackets = make_studies(experiment, budgets), make_brackets(experiment, budgets)
    _replay(recorder, studies, brackets, budgets)
    phases = Phases(studies, recorder, experiment.confirm.seeds)
    if phases.is_done:
        return True
    tuner = tune.Tuner(
        tune.with_resources(_worker(inputs), tune.PlacementGroupFactory(trial_bundles(resources))),
        tune_config=tune.TuneConfig(
            search_alg=phases if concurrent else RoomLimiter(phases, resources),
            scheduler=brackets,
            num_samples=-1,  # until the searcher says that it is finished
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(inputs.directory / "ray"),
            callbacks=[recorder, *callbacks],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # workers save states
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            verbose=0,
        ),
    )
    with _own_interrupts():
        tuner.fit()
    return phases.is_done


def _prepare_tune() -> None:
    """Change what Tune does by itself, in this process."""
    os.environ.update(TUNE_ENVIRONMENT)
    # To count kinds of callbacks for Ray's statistics, Tune would import MLflow and other loggers: 1.5 s.
    usage.tag_callbacks = lambda callbacks: False
    # Tune would pass the driver's secrets to workers, and each node's log and the dashboard would show them.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in os.environ if is_secret(name)])
    count_lost_workers()


def _replay(
    recorder: Recorder, studies: MethodStudies, brackets: MethodBrackets, budgets: MethodBudgets | None
) -> None:
    """Tell studies, brackets and budgets what an earlier process found in the search phase."""
    finished, unfinished = recorder.of_phase("search"), recorder.unfinished("search")
    studies.replay(
        ((trial.assignment, trial.learned) for trial in finished),
        [trial.assignment for trial in unfinished],
    )
    for trial in [*finished, *unfinished]:
        brackets.replay(trial.spec.method, trial.spec.trial_id, trial.best_so_far)
        if budgets:
            budgets.replay(trial)


def _worker(inputs: Inputs) -> type[tune.Trainable]:
    """Return the trainable that Tune starts for a trial: one that trains, or drives the processes that do."""
    resources = inputs.experiment.resources
    if resources.pack_size > 1:
        return tune.with_parameters(PackedTrialWorker, packs=open_packs(inputs, resources))
    if resources.workers_per_trial > 1:
        return tune.with_parameters(MultiProcessTrialWorker, inputs=inputs)
    return inputs.trainable


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Restore the handler of Ctrl-C after the block: Tune would go on catching it after its run."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _trial_name(trial: tune.experiment.Trial) -> str:
    return Assignment.from_config(trial.config).trial_id
