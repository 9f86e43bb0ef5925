"""A pack: trials that train side by side in one process, in one pass through their base where they can."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from trainables.base_model import BaseModel
from trainables.batches import Batch
from trainables.evaluation import Evaluation
from trainables.measure import Stopwatch
from trainables.shared_base import Guest, NotTogetherError, SharedBase, make_guest
from trainables.stretch import Stretch, take_step
from trainables.training import forward, mean_loss, update

Course = Iterator[Stretch | Evaluation]
"""A :func:`trainables.trial.trial_course`, which nobody but its pack asks to go on."""

Outcome = Evaluation | Exception
"""What a trial comes to: its next evaluation, or the error that ended it."""

TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far logits may be from those a trial has alone, by what they are computed in: rounding, and no more."""


@dataclass
class _Member:
    """A trial of the pack."""

    name: str
    course: Course
    stretch: Stretch | None = None  # what it is to be trained now
    guest: Guest | None = None  # None takes its steps by itself
    has_begun: bool = False
    is_new: bool = True  # its logits with others were not yet held against those it has alone


@dataclass(frozen=True, eq=False)
class _Step:
    """A step that a member is about to take."""

    member: _Member
    stretch: Stretch
    batch: Batch

    def alone(self) -> torch.Tensor:
        """Return the logits that the trial has alone, and leave its random stream as it was."""
        stream = self.stretch.trained.stream
        state = stream.state
        with torch.no_grad(), stream.active():
            logits = forward(self.stretch.trained.model, self.batch, self.stretch.dtype)
        stream.state = state
        return logits


class Pack:
    """Train trials side by side: in each round a step of each, taken together by those that can.

    Trials join and leave between any two rounds. Each has the numbers that it has alone, to rounding; its
    first step with others is held against that. One that cannot share the pass takes its steps by itself,
    and the pack says so.

    Arguments:
        base: the base model that all trials have.
        report: is told which trials train by themselves, and why.
    """

    def __init__(self, base: BaseModel, report: Callable[[str], None] = print) -> None:
        self._base = base
        self._report = report
        self._shared: dict[object, SharedBase] = {}  # by the kind of its guests
        self._members: dict[str, _Member] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no trial has training to do."""
        return all(member.stretch is None for member in self._members.values())

    def join(self, name: str, course: Course) -> None:
        """Take in a trial, in place of one of the same name; it trains once it is told to go on."""
        self._members[name] = _Member(name, course)

    def leave(self, name: str) -> None:
        """Let go of a trial, wherever it is."""
        self._members.pop(name, None)

    def go_on(self, name: str) -> Outcome | None:
        """Have a trial go on to its next evaluation; return that, or None where it is to be trained first.

        A trial that comes to an error has left.
        """
        member = self._members[name]
        try:
            asked = next(member.course)
        except Exception as error:
            self.leave(name)
            return error
        if isinstance(asked, Evaluation):
            member.stretch = None
            return asked
        if not member.has_begun:
            member.guest, member.has_begun = self._seat(name, asked), True
        member.stretch = asked
        return None

    def train(self) -> dict[str, Outcome]:
        """Take one step of each trial that has training to do; return what trials have come to."""
        outcomes: dict[str, Outcome] = {}
        groups: defaultdict[object, list[_Step]] = defaultdict(list)
        for member in list(self._members.values()):
            if (stretch := member.stretch) is None:
                continue
            if (batch := next(stretch.batches, None)) is not None:
                step = _Step(member, stretch, batch.to(stretch.trained.device))
                groups[member.guest and member.guest.kind].append(step)
            elif (outcome := self.go_on(member.name)) is not None:
                outcomes[member.name] = outcome
        for kind, steps in groups.items():
            apart = steps if kind is None or len(steps) == 1 else self._together(kind, steps)
            for step in apart:
                if error := _by_itself(step):
                    self.leave(step.member.name)
                    outcomes[step.member.name] = error
        return outcomes

    def _seat(self, name: str, stretch: Stretch) -> Guest | None:
        try:
            return make_guest(stretch.trained)
        except NotTogetherError as reason:
            self._report(f"{name} trains by itself in its pack: {reason}")
            return None

    def _part(self, step: _Step, reason: object) -> None:
        """Have a trial take its steps by itself from now on."""
        step.member.guest = None
        self._report(f"{step.member.name} trains by itself in its pack: {reason}")

    def _together(self, kind: object, steps: Sequence[_Step]) -> Sequence[_Step]:
        """Take steps in one pass; return those that must be taken by themselves."""
        states = [step.stretch.trained.stream.state for step in steps]
        new = [step for step in steps if step.member.is_new]
        try:
            expected = {step.member.name: step.alone() for step in new}
            apart = self._step(kind, steps, expected)
        except Exception as error:  # of all, so whose it is shows when they take it by themselves
            apart = steps
            for step in new:
                self._part(step, f"{type(error).__name__}: {error}")
        for step, state in zip(steps, states, strict=True):
            if step in apart:
                step.stretch.trained.stream.state = state
                step.stretch.trained.optimizer.zero_grad(set_to_none=True)
        return apart

    def _step(
        self, kind: object, steps: Sequence[_Step], expected: dict[str, torch.Tensor]
    ) -> Sequence[_Step]:
        """Take steps in one pass but those that come to other logits than expected; return these."""
        guests = [step.member.guest for step in steps if step.member.guest is not None]
        watch = Stopwatch(steps[0].stretch.trained.device)
        apart = []
        with watch.running():
            if kind not in self._shared:
                self._shared[kind] = SharedBase(self._base, guests[0])
            dtype = steps[0].stretch.dtype
            logits = self._shared[kind].logits(guests, [step.batch for step in steps], dtype)
            losses = {}
            for step, own in zip(steps, logits, strict=True):
                wanted = expected.get(step.member.name)
                if wanted is not None and not _is_close(own, wanted, dtype):
                    off = (own - wanted).abs().max().item()
                    self._part(step, f"with others its logits are off by {off:.2g}")
                    apart.append(step)
                    continue
                step.member.is_new = False
                losses[step.member.name] = mean_loss(own, step.batch)
            # The base is frozen: no gradient of one trial's loss reaches what another trains.
            if losses:
                torch.stack(list(losses.values())).sum().backward()
            taken = [step for step in steps if step.member.name in losses]
            for step in taken:
                trained = step.stretch.trained
                update(
                    trained.stepped,
                    trained.optimizer,
                    trained.schedule,
                    step.stretch.settings.max_gradient_norm,
                )
                step.stretch.add(step.batch, losses[step.member.name].detach())
        tokens = sum(step.batch.tokens for step in taken)
        for step in taken:
            step.stretch.seconds += watch.seconds * step.batch.tokens / tokens
        return apart


def _by_itself(step: _Step) -> Exception | None:
    """Take a step as a trial alone does; return the error that it came to."""
    watch = Stopwatch(step.stretch.trained.device)
    try:
        with watch.running(), step.stretch.trained.stream.active():
            take_step(step.stretch, step.batch)
    except Exception as error:
        return error
    step.stretch.seconds += watch.seconds
    return None


def _is_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    scale = max(1.0, wanted.abs().max().item())
    return torch.allclose(found, wanted, rtol=0, atol=TOLERANCE[dtype] * scale, equal_nan=True)
