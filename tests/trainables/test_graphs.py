"""Steps that a GPU takes as recorded graphs are the steps that it takes kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count, islice

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from trainables.base_model import BaseModel
from trainables.batches import Batch, training_batches
from trainables.data import TokenizedData
from trainables.dropout import SHORT_TEXT
from trainables.graphs import MULTIPLE, StepGraphs
from trainables.methods import METHODS
from trainables.parallel import ALONE
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec, set_up
from trainables.training import Trained, train_step
from trainables.trial import CPU

CUDA = torch.device("cuda")
STEPS = 30
TRAINING = TrainingSettings(epochs=5, learning_rate=1e-3, batch_size=12, warmup_fraction=0.5)


def begin(
    kind: str, base: BaseModel, data: TokenizedData, device: torch.device = CUDA, **changed: object
) -> Trained:
    """Set up a trial, with dropout where the method or the model has any."""
    settings = METHODS[kind].settings
    own = settings(dropout=0.1) if "dropout" in settings.model_fields else settings()
    spec = TrialSpec("t", kind, kind, 1, own, TRAINING.model_copy(update=changed))
    return set_up(spec, base, STEPS, device, ALONE, data.train.longest)[0]


def some_batches(data: TokenizedData, number: int = STEPS) -> list[Batch]:
    """Return batches of several lengths, of 12 examples but for one of 4 in each epoch."""
    endless = training_batches(data.train, TRAINING.batch_size, data.pad_token_id, 1, multiple=MULTIPLE)
    return list(islice(endless, number))


def losses(trained: Trained, batches: list[Batch]) -> list[float]:
    with trained.stream.active():
        return [train_step(trained, batch, TRAINING, torch.float32).item() for batch in batches]


def parameters(trained: Trained) -> dict[str, torch.Tensor]:
    named = trained.model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}


@pytest.mark.cuda
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_recorded_steps_have_the_numbers_of_others(kind: str, base: BaseModel, data: TokenizedData) -> None:
    recorded, plain = begin(kind, base, data), replace(begin(kind, base, data), graphs=None)
    batches = some_batches(data)
    found, expected = losses(recorded, batches), losses(plain, batches)
    assert recorded.graphs is not None
    shapes = {tuple(batch.input_ids.shape) for batch in batches}
    assert len(shapes) > 2
    assert set(recorded.graphs.shapes) == {tuple(batch.input_ids.shape) for batch in batches[1:]}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parameters(recorded), parameters(plain), rtol=1e-2, atol=1e-4)
    assert recorded.schedule.get_last_lr() == plain.schedule.get_last_lr()
    # Its own random numbers have come as far.
    torch.testing.assert_close(recorded.stream.state, plain.stream.state, rtol=0, atol=0)


@pytest.mark.cuda
def test_a_trial_that_continues_is_recorded(base: BaseModel, data: TokenizedData) -> None:
    """Its optimizer's settings are other ones than those it was made with."""
    recorded, plain = begin("lora", base, data), replace(begin("lora", base, data), graphs=None)
    for trained in (recorded, plain):
        trained.optimizer.load_state_dict(trained.optimizer.state_dict())
    batches = some_batches(data)
    torch.testing.assert_close(losses(recorded, batches), losses(plain, batches), rtol=1e-4, atol=1e-5)
    assert recorded.graphs is not None
    assert recorded.graphs.shapes


@pytest.mark.cuda
def test_a_recorded_step_is_launched_at_once(base: BaseModel, data: TokenizedData) -> None:
    trained = begin("lora", base, data)
    (batch,) = some_batches(data, 1)
    losses(trained, [batch] * 3)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        losses(trained, [batch] * 5)
    names = [event.name for event in profiler.events()]
    assert sum("GraphLaunch" in name for name in names) == 5
    assert sum("LaunchKernel" in name for name in names) < 5 * 10


@pytest.mark.cuda
def test_a_model_that_cannot_be_recorded_trains_all_the_same(base: BaseModel, data: TokenizedData) -> None:
    said: list[str] = []
    trained = begin("lora", base, data)
    trained = replace(trained, graphs=StepGraphs("lora-007", trained.optimizer, CUDA, said.append))
    plain = replace(begin("lora", base, data), graphs=None)

    def look(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        assert arguments[0].sum().isfinite().item()  # a GPU cannot answer while its work is only recorded

    for one in (trained, plain):
        one.model.get_submodule("base_model.model.score").register_forward_pre_hook(look)
    batches = some_batches(data)
    found, expected = losses(trained, batches), losses(plain, batches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (text,) = said
    assert text == "lora-007 trains without CUDA graphs: called a synchronizing CUDA operation"
    assert trained.graphs is not None
    assert not trained.graphs.shapes
    # Nothing is left behind: another model of this process is recorded.
    other = begin("full", base, data)
    losses(other, batches[:3])
    assert other.graphs is not None
    assert other.graphs.shapes


@pytest.mark.cuda
def test_a_parameter_whose_first_gradient_comes_late_is_trained_all_the_same(
    base: BaseModel, data: TokenizedData
) -> None:
    """A graph that makes its moments would make them anew in every step."""
    said: list[str] = []
    trained, plain = begin("full", base, data), replace(begin("full", base, data), graphs=None)
    trained = replace(trained, graphs=StepGraphs("full-001", trained.optimizer, CUDA, said.append))
    lates = []
    for one in (trained, plain):
        late, passes = nn.Parameter(torch.zeros(len(data.labels), device=CUDA)), count(1)
        one.optimizer.param_groups[0]["params"].append(late)
        lates.append(late)

        def add(
            module: nn.Module, arguments: object, output: torch.Tensor, late: nn.Parameter, passes: count[int]
        ) -> torch.Tensor | None:
            return output + late if next(passes) > 1 else None

        one.model.get_submodule("score").register_forward_hook(partial(add, late=late, passes=passes))
    batches = some_batches(data)
    torch.testing.assert_close(losses(trained, batches), losses(plain, batches), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*lates, rtol=1e-2, atol=1e-4)
    assert said == [
        "full-001 trains without CUDA graphs: a parameter has its first gradient after the first step"
    ]


@pytest.mark.cuda
def test_a_trial_that_has_no_memory_for_graphs_trains_all_the_same(
    base: BaseModel, data: TokenizedData
) -> None:
    said: list[str] = []
    batches = some_batches(data)
    trained, plain = begin("full", base, data), replace(begin("full", base, data), graphs=None)
    expected = losses(plain, batches)
    trained = replace(trained, graphs=StepGraphs("full-003", trained.optimizer, CUDA, said.append))

    def need_more(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(10**9, dtype=torch.uint8, device=CUDA)

    trained.model.get_submodule("score").register_forward_pre_hook(need_more)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 500e6) / total)
    try:
        found = losses(trained, batches)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said == ["full-003 trains without CUDA graphs: there is no memory for them"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_graphs_that_are_forgotten_hold_no_memory_and_are_recorded_again(
    base: BaseModel, data: TokenizedData
) -> None:
    trained, plain = begin("full", base, data), replace(begin("full", base, data), graphs=None)
    batches = some_batches(data)
    found = losses(trained, batches[:10])
    assert trained.graphs is not None
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    trained.masks.put({})  # the last recorded step's, which lie in its graph's memory
    trained.graphs.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    found += losses(trained, batches[10:])
    assert trained.graphs.shapes
    torch.testing.assert_close(found, losses(plain, batches), rtol=1e-4, atol=1e-5)


def test_steps_are_recorded_on_a_gpu_only(base: BaseModel, data: TokenizedData) -> None:
    assert begin("lora", base, data, CPU).graphs is None


@pytest.mark.cuda
def test_steps_on_long_texts_are_not_recorded(base: BaseModel, data: TokenizedData) -> None:
    spec = TrialSpec("t", "lora", "lora", 1, METHODS["lora"].settings(), TRAINING)
    for longest, is_recorded in ((SHORT_TEXT, True), (SHORT_TEXT + 1, False)):
        trained, _ = set_up(spec, base, STEPS, CUDA, ALONE, longest)
        assert (trained.graphs is not None) == is_recorded
    trained, _ = set_up(replace(spec, cuda_graphs=False), base, STEPS, CUDA, ALONE, SHORT_TEXT)
    assert trained.graphs is None


@pytest.mark.cuda
@pytest.mark.parametrize("changed", [{"micro_batch_size": 4}, {"gradient_checkpointing": True}])
def test_trials_that_save_memory_are_not_recorded(
    base: BaseModel, data: TokenizedData, changed: dict[str, object]
) -> None:
    assert begin("lora", base, data, **changed).graphs is None
    assert begin("lora", base, data).graphs is not None
