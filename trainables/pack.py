"""A pack: trials that train side by side in one process, in one pass through their base if they can."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from results.evaluation import Evaluation
from trainables.base_model import BaseModel
from trainables.batches import Batch
from trainables.guests import Guest, NotTogetherError, make_guest
from trainables.measure import Lap, Stopwatch, is_out_of_memory, without_frames
from trainables.shared_base import SharedBase
from trainables.stretch import Course, Stretch, take_step
from trainables.training import forward

Outcome = Evaluation | Exception
"""A trial's next evaluation, or the error that ended it."""

TOLERANCE: Final = {"highest": 1e-4, "high": 2e-2, "medium": 5e-2}
"""How far logits may be from those a trial has alone, by how matrices are multiplied: rounding, and no more.

TF32 and bfloat16 (:attr:`ModelSettings.float32_matmul`) keep 11 and 8 bits of each factor.
"""


IN_FLIGHT: Final = 2
"""Passes that a GPU may not have finished while the CPU prepares the next one."""


@dataclass
class _Member:
    """A trial of the pack."""

    name: str
    course: Course  # only the pack advances it
    stretch: Stretch | None = None  # the training that is due
    guest: Guest | None = None  # None if it takes its steps alone
    has_begun: bool = False
    is_new: bool = True  # its logits in a shared pass have not been checked yet


@dataclass(frozen=True, eq=False)
class _Step:
    """A member's next step."""

    member: _Member
    stretch: Stretch
    batch: Batch

    def alone(self) -> torch.Tensor:
        """Return the logits that the trial has alone; leave its random stream unchanged."""
        trained = self.stretch.trained
        state, batch = trained.stream.state, self.batch.to(trained.device)
        with torch.no_grad(), trained.stream.active():
            logits = forward(trained.model, batch, self.stretch.dtype)
        trained.stream.state = state
        trained.masks.put({})
        return logits


class Pack:
    """Train trials side by side: each round takes one step of each, in one pass for those that can share it.

    Trials join and leave between any two rounds. Each has the numbers that it has alone, to rounding; its
    first shared step is checked against that. One that cannot share the pass takes its steps alone, and the
    pack reports it.

    Arguments:
        base: the base model that all trials have.
        say: is told which trials train alone, and why.
    """

    def __init__(self, base: BaseModel, say: Callable[[str], None] = print) -> None:
        self._base = base
        self._say = say
        self._shared: dict[object, SharedBase] = {}  # by the kind of its guests
        self._members: dict[str, _Member] = {}
        self._errors: set[str] = set()  # of passes, reported once
        self._laps: deque[tuple[Lap, Sequence[_Step]]] = deque()  # passes that are not counted yet

    @property
    def is_idle(self) -> bool:
        """Whether no trial has training due."""
        return all(member.stretch is None for member in self._members.values())

    def join(self, name: str, course: Course) -> None:
        """Add a trial, replacing one of the same name; it trains after :meth:`go_on`."""
        self._members[name] = _Member(name, course)

    def leave(self, name: str) -> None:
        """Remove a trial, if it is here, at any point of its course."""
        if (member := self._members.pop(name, None)) is not None:
            self._take_apart(member)
            self._count_seconds()  # its steps are not kept any longer
            self._let_go_of_unused()

    def _let_go_of_unused(self) -> None:
        for kind in self._shared.keys() - {one.guest.kind for one in self._members.values() if one.guest}:
            self._shared.pop(kind).forget()  # garbage may be collected much later

    def go_on(self, name: str) -> Outcome | None:
        """Advance a trial; return its next evaluation, or None if it must be trained first.

        A trial that raises an error leaves, and the error is returned.
        """
        member = self._members[name]
        try:
            item = next(member.course)
        except Exception as error:
            self.leave(name)
            return without_frames(error)  # which would be held while others train
        if isinstance(item, Evaluation):
            member.stretch = None
            return item
        if not member.has_begun:
            member.guest, member.has_begun = self._seat(name, item), True
        member.stretch = item
        return None

    def train(self) -> dict[str, Outcome]:
        """Take one step of each trial that has training due; return the outcomes of those that went on."""
        outcomes: dict[str, Outcome] = {}
        groups: defaultdict[object, list[_Step]] = defaultdict(list)
        for member in list(self._members.values()):
            if (stretch := member.stretch) is None:
                continue
            if (batch := next(stretch.batches, None)) is not None:
                groups[member.guest and member.guest.kind].append(_Step(member, stretch, batch))
                continue
            self._take_apart(member)
            self._count_seconds()
            if (outcome := self.go_on(member.name)) is not None:
                outcomes[member.name] = outcome
        for kind, steps in groups.items():
            for step in steps if kind is None else self._together(kind, steps):
                if error := _by_itself(step):
                    self.leave(step.member.name)
                    outcomes[step.member.name] = error
        self._count_seconds(but=IN_FLIGHT)
        return outcomes

    def _seat(self, name: str, stretch: Stretch) -> Guest | None:
        try:
            if stretch.settings.parts(stretch.settings.batch_size) > 1:
                raise NotTogetherError("its batches go through the model in parts")
            return make_guest(stretch.trained)
        except NotTogetherError as reason:
            self._say(f"{name} trains by itself in its pack: {reason}")
            return None

    def _take_apart(self, member: _Member) -> None:
        """Copy what a trial has trained in shared steps back into its own model."""
        if member.guest is not None and (shared := self._shared.get(member.guest.kind)) is not None:
            shared.let_go(member.guest)

    def _part(self, step: _Step, reason: object) -> None:
        """Have a trial take its steps alone from now on."""
        self._take_apart(step.member)
        step.member.guest = None
        self._let_go_of_unused()
        self._say(f"{step.member.name} trains by itself in its pack: {reason}")

    def _together(self, kind: object, steps: Sequence[_Step]) -> Sequence[_Step]:
        """Take steps in one pass; return those that must be taken alone."""
        apart: list[_Step] = []
        while len(steps) > 1:
            states = [step.stretch.trained.stream.state for step in steps]
            error = None
            try:
                strange = self._step(kind, steps)
            except Exception as raised:  # whose error it is shows when each takes its step alone
                if isinstance(raised, torch.AcceleratorError) and not is_out_of_memory(raised):
                    raise  # no step can be taken in this process any more
                # Its text: the error itself would keep all activations of the step in memory.
                error, strange = f"{type(raised).__name__}: {raised}", list(steps)
                self._has_failed(kind, steps, "out of memory" if is_out_of_memory(raised) else error)
            if not strange:
                return apart
            for step, state in zip(steps, states, strict=True):
                step.stretch.trained.stream.state = state
            for step in strange:
                if step.member.is_new and error:
                    self._part(step, error)
            apart += strange
            steps = [step for step in steps if step not in strange]
        for step in (*apart, *steps):
            self._take_apart(step.member)
        return [*apart, *steps]

    def _has_failed(self, kind: object, steps: Sequence[_Step], error: str) -> None:
        """Make room for steps that are taken alone after a pass that failed; report its error once."""
        if kind in self._shared:
            self._shared[kind].forget()
        if error in self._errors or any(step.member.is_new for step in steps):  # which are parted
            return
        self._errors.add(error)
        self._say(f"a pass of a pack failed, and its trials took their steps alone: {error}")

    def _step(self, kind: object, steps: Sequence[_Step]) -> list[_Step]:
        """Take steps in one pass, or return those whose logits differ from what they are alone."""
        expected = {step.member.name: step.alone() for step in steps if step.member.is_new}
        by_guest = {step.member.guest: step for step in steps}
        guests = [step.member.guest for step in steps if step.member.guest is not None]
        if kind not in self._shared:
            self._shared[kind] = SharedBase(self._base, guests[0], self._say)
        shared = self._shared[kind]
        shared.host(guests)
        steps = [by_guest[guest] for guest in shared.guests]
        dtype, device = steps[0].stretch.dtype, steps[0].stretch.trained.device
        lap, random = Lap(device), _random_state(device) if expected else None
        try:
            with lap.running():
                logits, losses = shared.losses([step.batch for step in steps], dtype)
                has_drawn = random is not None and not torch.equal(random, _random_state(device))
                strange = []
                for step, own in zip(steps, logits, strict=True):
                    if (wanted := expected.get(step.member.name)) is None:
                        continue
                    if has_drawn:  # for one, dropout that is no module: it may be too little to be seen here
                        self._part(step, "its model draws random numbers that are no trial's own")
                    elif not _is_close(own, wanted, dtype):
                        off = (own - wanted).abs().max().item()
                        self._part(step, f"in a shared pass its logits are off by {off:.2g}")
                    else:
                        continue
                    strange.append(step)
                if not strange:
                    self._take(shared, steps, losses)
        finally:
            self._laps.append((lap, steps))
        return strange

    def _take(self, shared: SharedBase, steps: Sequence[_Step], losses: torch.Tensor) -> None:
        """Take the optimizer steps of a pass."""
        shared.step([step.stretch.settings.max_gradient_norm for step in steps])
        for step, loss in zip(steps, losses, strict=True):
            step.member.is_new = False
            trained = step.stretch.trained
            trained.masks.put({})  # of a step taken alone: the pack needs the memory
            if trained.graphs:
                trained.graphs.forget()
            step.stretch.add(step.batch, loss)

    def _count_seconds(self, but: int = 0) -> None:
        """Share out the seconds of passes by tokens, except of the latest ones, which may not have ended."""
        while len(self._laps) > but:
            lap, steps = self._laps.popleft()
            per_token = lap.seconds / sum(step.batch.tokens for step in steps)
            for step in steps:
                step.stretch.seconds += per_token * step.batch.tokens


def _by_itself(step: _Step) -> Exception | None:
    """Take a step as a trial alone does; return the error that it raised."""
    watch = Stopwatch(step.stretch.trained.device)
    try:
        with watch.running(), step.stretch.trained.stream.active():
            take_step(step.stretch, step.batch)
    except Exception as error:
        return without_frames(error)  # which would be held while others take their steps
    step.stretch.seconds += watch.seconds
    return None


def _random_state(device: torch.device) -> torch.Tensor:
    """Return the state of torch's own random numbers on a device, which no trial draws from in a pass."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _is_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    exactness = "medium" if dtype == torch.bfloat16 else torch.get_float32_matmul_precision()
    scale = max(1.0, wanted.abs().max().item())
    return torch.allclose(found, wanted, rtol=0, atol=TOLERANCE[exactness] * scale, equal_nan=True)
