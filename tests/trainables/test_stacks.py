"""What lies in stacks is trained as PyTorch's optimizer trains each trial's own parameters."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from decoders import no_masks
from hypothesis import given, settings
from torch import nn

from trainables.parallel import ALONE
from trainables.settings import TrainingSettings
from trainables.stacks import Stacks
from trainables.training import RandomStream, Trained, make_optimizer

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 3, 2


class Adapter(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, INPUTS))
        self.b = nn.Parameter(torch.randn(OUTPUTS, rank))
        self.bias = nn.Parameter(torch.randn(OUTPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.T @ self.b.T + self.bias


def make(rank: int, learning_rate: float) -> Trained:
    model = Adapter(rank)
    training = TrainingSettings(learning_rate=learning_rate, weight_decay=0.1)
    optimizer, schedule = make_optimizer(model, training, 20)
    return Trained(model, model, optimizer, schedule, RandomStream(0, CPU), no_masks(), None, CPU, ALONE)


def own(trained: Trained) -> dict[str, nn.Parameter]:
    return dict(trained.model.named_parameters())


def alone(trained: Trained, inputs: Sequence[torch.Tensor], norm: float) -> None:
    """Take steps as PyTorch does."""
    for x in inputs:
        trained.model(x).square().sum().backward()
        nn.utils.clip_grad_norm_(trained.model.parameters(), norm)
        trained.optimizer.step()
        trained.schedule.step()
        trained.optimizer.zero_grad()


def together(stacks: Stacks, inputs: torch.Tensor, norms: Sequence[float]) -> None:
    """Take a step of all, on ``[trials, rows, inputs]``."""
    stacks.begin_gradients()
    a, b, bias = (stacks.values(name) for name in ("a", "b", "bias"))
    reduced = inputs @ a.mT
    gradient = 2 * (reduced @ b.mT + bias[:, None])
    stacks.add_gradient("b", gradient.mT, reduced)
    stacks.add_gradient("a", (gradient @ b).mT, inputs)
    half = torch.full_like(gradient[:, :, :1], 0.5)
    for _ in range(2):  # what is added twice is the sum
        stacks.add_gradient("bias", gradient.mT, half)
    stacks.step(norms)


@settings(max_examples=40)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    leaves=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_steps_are_those_of_pytorch_whoever_comes_and_goes(ranks: list[int], leaves: int, seed: int) -> None:
    rates, norms = [1e-2, 3e-2, 1e-3, 1e-1], [0.5, 2.0, 1e6, 1.0]
    torch.manual_seed(seed)
    expected = [make(rank, rate) for rank, rate in zip(ranks, rates, strict=False)]
    torch.manual_seed(seed)
    found = [make(rank, rate) for rank, rate in zip(ranks, rates, strict=False)]
    inputs = torch.randn(6, len(ranks), 5, INPUTS)
    for number, trained in enumerate(expected):
        alone(trained, list(inputs[:, number]), norms[number])

    stacks = Stacks({"a": (4, INPUTS), "b": (OUTPUTS, 4), "bias": (OUTPUTS,)}, len(ranks), CPU)
    for trained in found:
        stacks.take_in(trained, own(trained))
    leaver = found[leaves % len(found)]
    for number, step in enumerate(inputs):
        if number == 3:  # one leaves and comes back, to another row
            stacks.take_out(leaver)
            stacks.take_in(leaver, own(leaver))
        rows = [next(i for i, one in enumerate(found) if one is trained) for trained in stacks.trials]
        together(stacks, step[rows], [norms[row] for row in rows])
    for trained in found:
        stacks.take_out(trained)

    for one, other in zip(found, expected, strict=True):
        for name, parameter in own(one).items():
            torch.testing.assert_close(parameter, own(other)[name])
            state = one.optimizer.state[parameter]
            for key, value in other.optimizer.state[own(other)[name]].items():
                torch.testing.assert_close(state[key], value)
        assert one.schedule.get_last_lr() == other.schedule.get_last_lr()
        alone(one, [inputs[0, 0]], 1.0)  # it can go on by itself
        alone(other, [inputs[0, 0]], 1.0)
        torch.testing.assert_close(own(one), own(other))


def test_a_trial_that_took_no_step_is_as_it_was() -> None:
    trained = make(2, 1e-2)
    before = {name: one.detach().clone() for name, one in own(trained).items()}
    stacks = Stacks({"a": (4, INPUTS), "b": (OUTPUTS, 4), "bias": (OUTPUTS,)}, 1, CPU)
    stacks.take_in(trained, own(trained))
    stacks.take_out(trained)
    torch.testing.assert_close({n: one.detach() for n, one in own(trained).items()}, before, rtol=0, atol=0)
    assert not trained.optimizer.state


def test_a_trial_that_cannot_be_taken_in_has_no_row() -> None:
    good, broken = make(2, 1e-2), make(2, 1e-2)
    broken.optimizer.state[own(broken)["a"]] = {"step": torch.ones(())}
    stacks = Stacks({"a": (4, INPUTS), "b": (OUTPUTS, 4), "bias": (OUTPUTS,)}, 2, CPU)
    with pytest.raises(KeyError, match="exp_avg"):
        stacks.take_in(broken, own(broken))
    stacks.take_in(good, own(good))
    assert [one is good for one in stacks.trials] == [True]


@pytest.mark.parametrize(
    ("shapes", "fit"),
    [({"a": (4, 3)}, True), ({"a": (2, 3), "b": (2, 1)}, True), ({"a": (5, 3)}, False), ({"c": (1,)}, False)],
)
def test_what_is_no_larger_fits(shapes: dict[str, tuple[int, ...]], fit: bool) -> None:
    assert Stacks({"a": (4, 3), "b": (2, 4)}, 1, CPU).fits(shapes) is fit
