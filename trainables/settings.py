"""The settings a trial is made of: frozen, validated, each with its unit, default and check."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""The most bytes that Linux allows."""


def _check_path(text: str) -> str:
    """Refuse what no file system accepts, so that a lookup can only find it or not."""
    names = Path(text).parts
    if (
        "\0" in text
        or len(os.fsencode(text)) > LONGEST_PATH
        or any(len(os.fsencode(n)) > LONGEST_NAME for n in names)
    ):
        raise PydanticCustomError("path", "expected a valid file name")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise PydanticCustomError("path", "expected a home directory that exists") from None
    return text


PathText = Annotated[str, AfterValidator(_check_path)]
"""A path, or what may be one: a hub id, the name of a split."""


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSettings(Settings):
    """The base model."""

    path: PathText = Field("embedded", min_length=1, description="hub id, local directory, or 'embedded'")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of frozen weights and computation; what is trained is always float32"
    )
    float32_matmul: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="how float32 matrices are multiplied (torch.set_float32_matmul_precision): highest in 32"
        " bits; high in TF32, medium in bfloat16, where the hardware has it; sums have 32 bits in each",
    )
    revision: str | None = Field(None, description="hub revision; null is the default branch")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class DataSettings(Settings):
    """Where examples come from and how many are used.

    ``train``, ``validation`` and ``test`` are split names of ``path`` or local files; an existing
    file is always read as a file. With a file to train on, splits of the embedded dataset are not taken: what
    is not given is cut from that file.
    """

    path: PathText | None = Field(
        "embedded", description="hub id or 'embedded'; null if all splits are files or cut from one"
    )
    config: str | None = Field(None, description="configuration of a hub dataset, such as sst2 of glue")
    train: PathText = Field(
        "train",
        min_length=1,
        description="split name or file to train on: .csv, .tsv, .jsonl, .json or .parquet, as its name ends,"
        " and in UTF-8 if it is text; quotes in .tsv files are part of the text, so it cannot have tabs or"
        " line breaks",
    )
    validation: PathText | None = Field(
        "validation", description="split name or file; null cuts it from train"
    )
    test: PathText | None = Field(None, description="split name or file; null cuts it from train")
    text: str = Field("sentence", min_length=1, description="column of the text")
    text_pair: str | None = Field(None, description="column of a second text, for sentence pairs")
    label: str = Field("label", min_length=1, description="column of the label")
    columns: list[str] | None = Field(
        None, min_length=1, description="column names of files without a header"
    )
    max_train_examples: int | None = Field(
        None, ge=1, description="most examples of train, a seeded, stratified sample; null uses all"
    )
    max_validation_examples: int | None = Field(
        None, ge=1, description="most examples of validation; null uses all"
    )
    max_length: int = Field(64, ge=1, le=1_000_000, description="tokens; longer texts are cut")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of train, if validation is cut from it"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of train, if test is cut from it")


class TrainingDefaults(Settings):
    """Training settings shared by all methods; a method may override or search each of them."""

    epochs: int = Field(3, ge=1, description="passes over the training examples")
    batch_size: int = Field(16, ge=1, description="examples per optimizer step")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="examples that go through the model at once, whose gradients add up to those of the batch"
        " (gradient accumulation): less memory, more time; null is the whole batch",
    )
    evaluations_per_epoch: int = Field(2, ge=1, description="validation runs per epoch, evenly spaced")
    warmup_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of all steps: linear warm-up, then linear decay"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global L2 norm")
    evaluation_batch_size: int = Field(
        256,
        ge=1,
        description="examples of an evaluation batch, at most; of long texts there are fewer",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, more time"
    )

    @property
    def saves_memory(self) -> bool:
        """Whether the trial trades time for memory."""
        return self.gradient_checkpointing or self.micro_batch_size is not None

    def parts(self, examples: int) -> int:
        """Return the number of parts in which a batch goes through the model."""
        return math.ceil(examples / (self.micro_batch_size or examples))


class TrainingSettings(TrainingDefaults):
    """Training settings of one trial."""

    learning_rate: float = Field(gt=0, description="AdamW's peak learning rate")
