"""States of trials in a run directory: the newest that is whole is what a trial goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prepared import prepare

from orchestrator.states import read_state, save_state, saved_evaluation
from trainables.methods import METHODS
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec
from trainables.state import TrialState
from trainables.trial import TrialInputs, run_trial

SPEC = TrialSpec(
    "lora-000", "lora", "lora", 1, METHODS["lora"].settings(), TrainingSettings(learning_rate=1e-3, epochs=2)
)


@pytest.fixture(scope="module")
def runs(
    model_directories: dict[str, Path], data_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two run directories: with the state of a trial after its first evaluation, and after its second."""
    directory = tmp_path_factory.mktemp("run")
    data, _, base = prepare(model_directories["gpt2"], data_files)
    state = TrialState()
    for _ in run_trial(TrialInputs(SPEC, data, base, state=state)):
        save_state(directory / str(state.progress.evaluation), SPEC, state)
    return directory


def state_of(run: Path) -> Path:
    (directory,) = (run / "states" / SPEC.trial_id).iterdir()
    return directory


def copy(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_the_newest_state_is_read_and_takes_the_place_of_the_one_before(runs: Path, tmp_path: Path) -> None:
    assert saved_evaluation(runs / "2", SPEC) == 2
    state, damage = read_state(runs / "2", SPEC)
    assert (state.progress.evaluation, damage) == (2, None)
    for number in ("1", "2"):
        source = state_of(runs / number)
        copy(source, tmp_path / "states" / SPEC.trial_id / source.name)
    assert read_state(tmp_path, SPEC)[0].progress.evaluation == 2
    assert saved_evaluation(tmp_path, SPEC) == 2


def test_a_trial_without_a_state_begins(tmp_path: Path) -> None:
    state, damage = read_state(tmp_path, SPEC)
    assert (state.progress.evaluation, damage) == (0, None)
    assert saved_evaluation(tmp_path, SPEC) == 0


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "not JSON"])
def test_a_damaged_state_gives_way_to_the_one_before_and_is_said(
    runs: Path, tmp_path: Path, harm: str
) -> None:
    states = tmp_path / "states" / SPEC.trial_id
    for number in ("1", "2"):
        source = state_of(runs / number)
        newest = copy(source, states / source.name)
    weights = newest / "state.safetensors"
    content = weights.read_bytes()
    if harm == "flipped":
        weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif harm == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif harm == "gone":
        weights.unlink()
    else:
        (newest / "progress.json").write_text("{")
    state, damage = read_state(tmp_path, SPEC)
    assert state.progress.evaluation == 1
    assert damage is not None
    assert newest.name in damage


def test_a_state_of_other_hyperparameters_is_not_the_trials(runs: Path) -> None:
    other = replace(SPEC, training=SPEC.training.model_copy(update={"learning_rate": 2e-3}))
    assert read_state(runs / "2", other)[0].progress.evaluation == 0
    assert saved_evaluation(runs / "2", other) == 0
