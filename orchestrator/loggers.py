"""TensorBoard, MLflow and Weights & Biases, through Ray Tune's own callbacks."""

from __future__ import annotations

import shutil
import socket
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ray.air.constants import TRAINING_ITERATION
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from orchestrator.assignment import Assignment
from orchestrator.experiment import Experiment
from orchestrator.history import TrialHistory
from orchestrator.reports import POINT, STATUS
from orchestrator.rows import CURVE_COLUMNS
from orchestrator.secrets import redact
from results.evaluation import Evaluation
from trainables.errors import InputError

PACKAGES: Final[Mapping[str, str]] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""The Python package that each setting of ``logging`` needs."""


def logger_problems(experiment: Experiment, reach: bool = True) -> list[InputError]:
    """Return which loggers cannot work, and why.

    Arguments:
        experiment: has the ``logging`` settings.
        reach: also check that the loggers' servers and credentials are there, which creates MLflow's
            experiment.
    """
    wanted = experiment.logging.wanted
    problems = [
        InputError(
            f"logging.{name}",
            f"needs the Python package {PACKAGES[name]}, which is not installed; install it"
            f" (pip install {PACKAGES[name]}) or remove logging.{name}",
        )
        for name in wanted
        if find_spec(PACKAGES[name]) is None
    ]
    if not problems and reach:
        for name in wanted:
            try:
                if name == "mlflow":
                    _knock(str(experiment.logging.mlflow))
                _make_logger(name, experiment).setup()
            except Exception as error:
                value = getattr(experiment.logging, name)
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                problems.append(InputError(f"logging.{name}", f"{value}: {said}"))
    return problems


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at a web address; MLflow itself would retry for four minutes."""
    url = urlsplit(address)
    if url.scheme in ("http", "https") and url.hostname:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        socket.create_connection((url.hostname, port), timeout=10).close()


def make_loggers(
    experiment: Experiment,
    directory: Path,
    say: Callable[[str], None],
    going_on: Sequence[TrialHistory] = (),
) -> list[Callback]:
    """Make the callbacks that the experiment's ``logging`` asks for.

    Arguments:
        experiment: what runs.
        directory: of the run.
        say: is told when a logger fails.
        going_on: trials that an earlier process began and logged, and that continue.
    """
    logged = {trial.spec.trial_id for trial in going_on if trial.curve}
    return [
        Relay(name, _make_logger(name, experiment), experiment, directory / name, say, logged)
        for name in experiment.logging.wanted
    ]


def _make_logger(name: str, experiment: Experiment) -> LoggerCallback:
    settings = experiment.logging
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(tracking_uri=settings.mlflow, experiment_name=experiment.name)
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project=settings.wandb, group=experiment.name)
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()


@dataclass(frozen=True)
class ShownTrial:
    """A trial as Tune's loggers see it: a name, plain hyperparameters, a directory if they ask for one."""

    name: str
    trial_id: str
    directory: Path
    config: dict[str, Any] = field(compare=False)

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    @property
    def local_path(self) -> str:
        self.directory.mkdir(parents=True, exist_ok=True)
        return str(self.directory)

    def init_local_path(self) -> None:
        """Do nothing: the directory is made when it is asked for."""

    def __str__(self) -> str:
        return self.name


class Relay(Callback):
    """Pass trials and evaluations on to one of Tune's loggers, as flat names and numbers.

    The logger runs in a thread of its own, so that a slow server delays no trial. An error ends this logger
    and nothing else: the result set has everything.

    Arguments:
        name: the setting of ``logging``.
        logger: one of Tune's.
        experiment: what runs.
        directory: for the logger's files, in a subdirectory per trial.
        say: is told of the first error.
        logged: ids of trials that were logged up to where they continue.
    """

    def __init__(
        self,
        name: str,
        logger: LoggerCallback,
        experiment: Experiment,
        directory: Path,
        say: Callable[[str], None],
        logged: Collection[str] = (),
    ) -> None:
        self._name = name
        self._logged = logged
        self._logger = logger
        self._experiment = experiment
        self._directory = directory
        self._say = say
        self._has_failed = False
        self._running: dict[str, ShownTrial] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def __getstate__(self) -> dict[str, Any]:
        """Keep out of Tune's state files: a run is continued from its journal."""
        return {}

    def setup(self, **info: Any) -> None:  # type: ignore[override]
        self._tell(self._logger.setup)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id in self._running:
            return  # its worker died, and another one continues it
        assignment = Assignment.from_config(trial.config)
        spec = self._experiment.trial_spec(assignment)
        config = {"method": spec.method, "phase": assignment.phase, "seed": spec.seed}
        shown = ShownTrial(
            spec.trial_id,
            trial.trial_id,
            self._directory / spec.trial_id,
            {**config, **assignment.hyperparameters},
        )
        self._running[trial.trial_id] = shown
        # A trial that starts over must not keep the curve of its interrupted run.
        if spec.trial_id not in self._logged:
            self._tell(shutil.rmtree, shown.directory, True)
        self._tell(self._logger.log_trial_start, shown)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if POINT in result:
            shown = self._running[trial.trial_id]
            self._tell(self._logger.log_trial_result, iteration, shown, flat_numbers(result[POINT]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial.trial_id, failed=STATUS in (trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial.trial_id, failed=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        for trial_id in list(self._running):
            self._end(trial_id, failed=True)
        self._tell(self._logger.on_experiment_end, trials).result()

    def _end(self, trial_id: str, failed: bool) -> None:
        # A trial whose worker died before it began was never started.
        shown = self._running.pop(trial_id, None)
        if shown is not None:
            self._tell(self._logger.log_trial_end, shown, failed)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> Future[None]:
        return self._thread.submit(self._call, method, arguments)

    def _call(self, method: Callable[..., None], arguments: Iterable[Any]) -> None:
        if self._has_failed:
            return
        try:
            method(*arguments)
        except Exception as error:
            self._has_failed = True
            print(redact(traceback.format_exc()), flush=True)
            self._say(
                f"logging.{self._name} ended with {type(error).__name__}: {redact(str(error))};"
                " the run goes on and its results are complete"
            )


def flat_numbers(point: Evaluation) -> dict[str, float]:
    """Return an evaluation's numbers by column; the iteration that loggers show is the optimizer step."""
    numbers = {name: getattr(point, name) for name in (*CURVE_COLUMNS, "examples_per_second")}
    if point.test is not None:
        test = point.test
        numbers |= {"test_accuracy": test.accuracy, "test_loss": test.loss, "test_macro_f1": test.macro_f1}
    known = {name: value for name, value in numbers.items() if value is not None}
    return {**known, TRAINING_ITERATION: point.step}
