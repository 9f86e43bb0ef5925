"""The confirm phase's plan, and that the test split is read in it alone: a real Ray."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from runs import small_experiment

from orchestrator.confirm import confirm_trials
from orchestrator.experiment import Assignment, Experiment
from orchestrator.phases import run_phases
from orchestrator.prepare import prepare
from orchestrator.progress import Display
from orchestrator.provenance import collect_provenance
from orchestrator.recorder import Recorder
from orchestrator.worker import share


class Planted:
    """A test split that raises when a worker reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("the test split was read",)


@pytest.fixture
def experiment(model_directories: dict[str, Path], data_files: dict[str, Path], tmp_path: Path) -> Experiment:
    values = small_experiment(
        tmp_path,
        model_directories["gpt2"],
        data_files,
        training={"epochs": 1, "batch_size": 8},
        search={"trials": 2},
        confirm={"seeds": 2},
        methods={"head": {}, "lora": {"rank": 2}},
    )
    return Experiment.model_validate(values)


@pytest.mark.usefixtures("local_ray")
def test_the_search_ends_well_beside_a_test_split_that_raises_when_it_is_read(experiment: Experiment) -> None:
    prepared = prepare(experiment, lambda text: None)
    directory = experiment.run_directory
    directory.mkdir(parents=True)
    with Display(Console(quiet=True), experiment, []) as display:
        recorder = Recorder(experiment, collect_provenance(experiment, prepared), directory, [display], print)
        inputs = replace(share(experiment, prepared, directory), test=ray.put(Planted()))
        before = signal.getsignal(signal.SIGINT)
        assert run_phases(inputs, recorder, 2)
        assert signal.getsignal(signal.SIGINT) == before  # Tune would leave its own
        searched, confirmed = recorder.of_phase("search"), recorder.of_phase("confirm")
        recorder.close()
    assert [trial.status for trial in searched] == ["completed"] * 4
    # The plant works: the confirm phase does read it.
    assert [trial.status for trial in confirmed] == ["failed"] * 4
    assert all("the test split was read" in (trial.error or "") for trial in confirmed)


def test_all_methods_have_the_same_fresh_seeds(experiment: Experiment) -> None:
    def seeds(phase: Any, method: str) -> list[int]:
        given = {"learning_rate": 1e-3, "alpha": 4} if method == "lora" else {"learning_rate": 1e-3}
        return [experiment.trial_spec(Assignment(method, number, given, phase)).seed for number in range(3)]

    assert seeds("confirm", "head") == seeds("confirm", "lora")
    assert len({*seeds("confirm", "head"), *seeds("search", "head"), *seeds("search", "lora")}) == 9


def test_a_search_without_trials_has_nothing_to_confirm() -> None:
    assert confirm_trials([], "lora", 5) == []
