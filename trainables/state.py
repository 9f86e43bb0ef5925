"""The state of a trial in training: all that it takes to go on with the same numbers."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from trainables.errors import DamagedStateError
from trainables.parallel import of_all_ranks, own_part, whole
from trainables.training import Trained

TENSORS_FILE, PROGRESS_FILE = "state.safetensors", "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a trial has come. The order of its data follows from its seed and ``step``."""

    evaluation: int = 0  # evaluations made
    step: int = 0  # optimizer steps
    examples: int = 0  # trained examples
    tokens: int = 0  # trained tokens without padding
    best: tuple[float, float] | None = None  # validation accuracy, and negated loss
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    setup_seconds: float = 0.0
    peak_memory_bytes: int | None = None


class TrialState:
    """A trial's handle on its own state: ``TrialState()`` starts it, one that was read goes on.

    Give it to ``run_trial`` and save it between two evaluations. It holds the trained parameters and their
    optimizer state, never the frozen base.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self._schedule: dict[str, Any] = {}
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._trained: Trained | None = None

    @classmethod
    def read(cls, directory: Path) -> TrialState:
        """Read what :meth:`save` wrote.

        Raises:
            DamagedStateError: if it is incomplete, or not what was written.
        """
        state = cls()
        try:
            content = json.loads((directory / PROGRESS_FILE).read_text())
            best = content["progress"].pop("best")
            state.progress = Progress(**content["progress"], best=tuple(best) if best else None)
            state._schedule = content["schedule"]
            if _checksum(directory / TENSORS_FILE) != content["crc32"]:
                raise DamagedStateError(f"{directory / TENSORS_FILE}: not what was written")
            state._tensors = load_file(directory / TENSORS_FILE)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise DamagedStateError(f"{directory}: not a whole state ({type(error).__name__})") from error
        return state

    def save(self, directory: Path) -> None:
        """Write the state to a new directory, whole or not at all.

        Of several ranks, rank 0 writes, and all must call it.

        Raises:
            OSError: if it could not be written.
        """
        assert self._trained is not None, "the trial has not begun"
        tensors = _tensors(self._trained)
        if self._trained.group.rank != 0:
            return
        temporary = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            save_file(tensors, temporary / TENSORS_FILE)
        except SafetensorError as error:
            raise OSError(f"{directory}: could not be written: {error}") from error
        content = {
            "progress": asdict(self.progress),
            "schedule": self._trained.schedule.state_dict(),
            "crc32": _checksum(temporary / TENSORS_FILE),
        }
        (temporary / PROGRESS_FILE).write_text(json.dumps(content))
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)

    def attach(self, trained: Trained) -> None:
        """Attach to what a trial has set up, and restore into it what was read."""
        if self._tensors:
            trained.schedule.load_state_dict(self._schedule)
            _restore(trained, self._tensors)
            self._tensors = {}
        self._trained = trained


def _checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as content:
        while part := content.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _tensors(trained: Trained) -> dict[str, torch.Tensor]:
    """Name all tensors, on rank 0: ``random.RANK.DEVICE``, ``model.NAME`` and ``optimizer.NAME.KEY``."""
    tensors = {
        f"random.{rank}.{name}": state
        for name, own in trained.stream.state.items()
        for rank, state in enumerate(of_all_ranks(own, trained.group, trained.device))
    }
    for name, tensor in _changing(trained.model).items():
        optimized = {
            f"optimizer.{name}.{key}": t for key, t in trained.optimizer.state.get(tensor, {}).items()
        }
        for key, part in {f"model.{name}": tensor.detach(), **optimized}.items():
            value = whole(part)
            if trained.group.rank == 0:
                tensors[key] = value.cpu().contiguous()
    return tensors


def _restore(trained: Trained, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in _changing(trained.model).items():
        with torch.no_grad():
            value = tensors[f"model.{name}"]
            tensor.copy_(own_part(value, trained.model) if isinstance(tensor, nn.Parameter) else value)
    # A rank or a kind of device that the state knows nothing of keeps the stream it was seeded with.
    saved = _below(f"random.{trained.group.rank}", tensors)
    stream = trained.stream.state
    trained.stream.state = {name: saved.get(name, seeded) for name, seeded in stream.items()}
    rates, groups = trained.schedule.get_last_lr(), trained.optimizer.state_dict()["param_groups"]
    groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    state = {}
    names = {parameter: name for name, parameter in trained.model.named_parameters()}
    parameters = [parameter for group in trained.optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        # A moment has its parameter's shape and is split over ranks like it; the step is a scalar. Without a
        # gradient so far a parameter has neither.
        if known := _below(f"optimizer.{names[parameter]}", tensors):
            state[index] = {
                key: own_part(value, trained.model) if value.shape == parameter.shape else value
                for key, value in known.items()
            }
    # This moves each tensor to its parameter's device.
    trained.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes: trained parameters, and buffers of its state_dict."""
    kept = model.state_dict().keys()
    return {
        **{name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad},
        **{name: buffer for name, buffer in model.named_buffers() if name in kept},
    }


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
