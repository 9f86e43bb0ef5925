"""A trial that goes on from a saved state gives the numbers of one that was never interrupted."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import Prepared, prepare
from safetensors.torch import load_file

from results.evaluation import Evaluation
from trainables.methods import METHODS
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec
from trainables.state import TrialState, _restore, _tensors
from trainables.stretch import Stretch, train
from trainables.trial import TrialInputs, run_trial, trial_course

TIMED = ("train_seconds", "evaluation_seconds", "setup_seconds", "peak_memory_bytes", "checkpoint", "test")


@pytest.fixture(scope="module")
def prepared(model_directories: dict[str, Path], data_files: dict[str, Path]) -> Prepared:
    return prepare(model_directories["gpt2"], data_files)  # it has dropout


def make_spec(kind: str) -> TrialSpec:
    # 64 examples in batches of 12: evaluations fall inside epochs, and epochs end with a short batch.
    training = TrainingSettings(
        epochs=3, learning_rate=1e-2, batch_size=12, evaluations_per_epoch=2, weight_decay=0.01
    )
    own = METHODS[kind].settings
    settings = own(dropout=0.1) if "dropout" in own.model_fields else own()
    return TrialSpec("t", kind, kind, 1, settings, training)


def outcome(point: Evaluation) -> list[object]:
    return [getattr(point, field.name) for field in fields(point) if field.name not in TIMED]


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_a_continued_trial_is_the_uninterrupted_one(
    prepared: Prepared, kind: str, tmp_path: Path, device: torch.device
) -> None:
    data, test, base = prepared
    spec = make_spec(kind)
    whole = list(run_trial(TrialInputs(spec, data, base, tmp_path / "whole", test, device=device)))

    points: list[Evaluation] = []
    for stop in (1, 3, 4):
        state = TrialState.read(tmp_path / "state") if points else TrialState()
        trial = run_trial(TrialInputs(spec, data, base, tmp_path / "cut", test, state, device=device))
        points += islice(trial, stop - len(points))
        (tmp_path / "state").mkdir(exist_ok=True)
        state.save(tmp_path / "state")
        # What the worker did after its last save is lost.
        next(trial)
        del trial, state
        torch.rand(3, device=device)
    state = TrialState.read(tmp_path / "state")
    points += run_trial(TrialInputs(spec, data, base, tmp_path / "cut", test, state, device=device))
    if device.type == "cuda":  # whose sums are taken in any order
        losses = [[(p.train_loss, p.validation_loss) for p in curve] for curve in (points, whole)]
        np.testing.assert_allclose(*losses, rtol=1e-3)
        return

    assert list(map(outcome, points)) == list(map(outcome, whole))
    seconds = [point.train_seconds for point in points]
    assert seconds == sorted(seconds)
    assert points[-1].test is not None
    assert whole[-1].test is not None
    assert (points[-1].test.logits == whole[-1].test.logits).all()
    file = next((tmp_path / "whole").glob("*.safetensors")).name
    expected, found = (load_file(tmp_path / run / file) for run in ("whole", "cut"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_parameter_without_a_gradient_so_far_has_no_moments(
    prepared: Prepared,
) -> None:
    """Else a pack would look for them, and graphs of steps would not notice the first gradient."""
    data, _, base = prepared
    first = next(trial_course(TrialInputs(make_spec("head"), data, base)))
    assert isinstance(first, Stretch)
    train(first)
    trained, (idle, *_) = first.trained, first.trained.optimizer.state
    del trained.optimizer.state[idle]
    saved = _tensors(trained)
    trained.optimizer.state.clear()
    _restore(trained, saved)
    assert idle not in trained.optimizer.state


def test_a_rank_that_was_not_there_draws_from_the_stream_it_is_seeded_with(
    prepared: Prepared, tmp_path: Path
) -> None:
    """As where a run goes on with more workers to a trial, or from a CPU on a GPU."""
    data, _, base = prepared
    state = TrialState()
    next(run_trial(TrialInputs(make_spec("lora"), data, base, state=state)))
    state.save(tmp_path / "state")
    file = tmp_path / "state" / "state.safetensors"
    outcomes = []
    for _ in range(2):
        again = TrialState.read(tmp_path / "state")
        again._tensors = {
            name.replace("random.0.", "random.7."): one for name, one in load_file(file).items()
        }
        inputs = TrialInputs(make_spec("lora"), data, base, state=again)
        outcomes.append(list(map(outcome, run_trial(inputs))))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == 5


def test_weights_after_the_last_step_are_equal_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    """The best checkpoint may lie before the interruption; the last state does not."""
    data, _, base = prepared
    for run, cut in (("whole", False), ("cut", True)):
        state = TrialState()
        (tmp_path / run).mkdir()
        trial = run_trial(TrialInputs(make_spec("full"), data, base, state=state))
        if cut:
            next(trial)
            state.save(tmp_path / run)
            state = TrialState.read(tmp_path / run)
            trial = run_trial(TrialInputs(make_spec("full"), data, base, state=state))
        assert list(trial)[-1].is_last
        state.save(tmp_path / run)
    expected, found = (load_file(tmp_path / run / "state.safetensors") for run in ("whole", "cut"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapters_state_holds_nothing_of_the_frozen_base(prepared: Prepared, tmp_path: Path) -> None:
    data, _, base = prepared
    state = TrialState()
    point = next(run_trial(TrialInputs(make_spec("qlora"), data, base, state=state)))
    state.save(tmp_path)
    tensors = load_file(tmp_path / "state.safetensors")
    weights = sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith("random."))
    steps = sum(name.endswith(".step") for name in tensors)
    assert weights == 3 * point.trainable_parameters + steps
