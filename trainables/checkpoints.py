"""Checkpoints that open with plain ``PeftModel`` and ``AutoModelForSequenceClassification``."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: str  # directory
    kind: str  # "adapter" or "full"
    bytes: int  # of all files in the directory
    sha256: str  # of the weights file


ADAPTER_FILE, MODEL_FILE = "adapter_model.safetensors", "model.safetensors"


def save_checkpoint(model: nn.Module, directory: Path) -> Checkpoint:
    """Save a model, replacing what ``directory`` held only once the new files are whole.

    An adapter holds the head too. The base of an adapter is named in its ``adapter_config.json``.
    """
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(model, PeftModel):
        # "auto" would ask the hub whether the base's vocabulary has changed.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        kind, weights = "adapter", ADAPTER_FILE
    else:
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(temporary)
        kind, weights = "full", MODEL_FILE
    size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    with open(temporary / weights, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    return Checkpoint(str(directory), kind, size, sha256)


def load_checkpoint(model: nn.Module, directory: Path) -> None:
    """Put the weights of a checkpoint of this very model back into it."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(directory / ADAPTER_FILE))
        return
    weights = load_file(directory / MODEL_FILE)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied weights are saved once.
    assert not unexpected
    assert set(missing) <= set(getattr(model, "all_tied_weights_keys", {}) or {})
