"""Checkpoints that open with plain ``PeftModel`` and ``AutoModelForSequenceClassification``."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from results.evaluation import Checkpoint
from trainables.parallel import ALONE, Group, own_part, whole


class Elsewhere(Protocol):
    """A second place for a trial's best checkpoint, where its processes do not all see one directory."""

    def put(self, directory: Path) -> None:
        """Copy a checkpoint there."""

    def get(self, directory: Path) -> None:
        """Copy it from there, if it is not here."""


ADAPTER_FILE, MODEL_FILE = "adapter_model.safetensors", "model.safetensors"
ONE_FILE = "100TB"
"""A size that no model has, so that all weights are in one file."""


def save_checkpoint(model: nn.Module, directory: Path, group: Group = ALONE) -> Checkpoint | None:
    """Save a model, replacing the contents of ``directory`` only once the new files are complete.

    An adapter holds the head too. Its base is named in ``adapter_config.json``, and ``config.json`` is the
    configuration that the base is to be loaded with: it has the labels. All ranks of a group must call it;
    rank 0 writes, and gets the checkpoint.

    Raises:
        OSError: if it could not be written.
    """
    weights = _gather(model, group) if group.shards_model else None
    return _write(model, directory, weights) if group.rank == 0 else None


def _gather(model: nn.Module, group: Group) -> dict[str, torch.Tensor]:
    """Return, on rank 0, a checkpoint's whole tensors; all ranks must call it."""
    parts: dict[str, torch.Tensor] = model.state_dict()
    if isinstance(model, PeftModel):
        parts = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {}
    for name, part in parts.items():
        tensor = whole(part.detach())
        if group.rank == 0:
            weights[name] = tensor.cpu()
    return weights


def _write(model: nn.Module, directory: Path, state: dict[str, torch.Tensor] | None) -> Checkpoint:
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    kind, weights = ("adapter", ADAPTER_FILE) if isinstance(model, PeftModel) else ("full", MODEL_FILE)
    try:
        if isinstance(model, PeftModel):
            # "auto" would ask the hub whether the base's vocabulary has changed.
            model.save_pretrained(str(temporary), save_embedding_layers=False, state_dict=state)
            base = model.get_base_model()
            assert isinstance(base, PreTrainedModel)
            base.config.save_pretrained(temporary)  # has the labels
            (temporary / "README.md").unlink()  # an empty model card
        else:
            assert isinstance(model, PreTrainedModel)
            # By the names that load_checkpoint expects: the original format may name experts otherwise.
            model.save_pretrained(
                temporary, state_dict=state, save_original_format=False, max_shard_size=ONE_FILE
            )
    except SafetensorError as error:
        raise OSError(f"{directory}: could not be written: {error}") from error
    size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    with open(temporary / weights, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    return Checkpoint(str(directory), kind, size, sha256)


def load_checkpoint(model: nn.Module, directory: Path) -> None:
    """Load a checkpoint of this same model back into it."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, _read_parts(directory / ADAPTER_FILE, model))
        return
    weights = _read_parts(directory / MODEL_FILE, model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied weights are saved once.
    assert not unexpected
    assert set(missing) <= set(getattr(model, "all_tied_weights_keys", {}) or {})


def _read_parts(file: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """Read the parts of a checkpoint's tensors that this rank holds of the model."""
    return {name: own_part(tensor, model) for name, tensor in load_file(file).items()}
