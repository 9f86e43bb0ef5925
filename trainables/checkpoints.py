"""Checkpoints that open with plain ``PeftModel`` and ``AutoModelForSequenceClassification``."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: str  # directory
    kind: str  # "adapter" or "full"
    bytes: int  # of all files in the directory
    sha256: str  # of the weights file


def save_checkpoint(model: nn.Module, directory: Path) -> Checkpoint:
    """Save a model, replacing what ``directory`` held only once the new files are whole.

    An adapter holds the head too. The base of an adapter is named in its ``adapter_config.json``.
    """
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(model, PeftModel):
        # "auto" would ask the hub whether the base's vocabulary has changed.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        kind, weights = "adapter", "adapter_model.safetensors"
    else:
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(temporary)
        kind, weights = "full", "model.safetensors"
    size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    with open(temporary / weights, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    return Checkpoint(str(directory), kind, size, sha256)
