"""The sections of an experiment that say how it runs: every setting, its unit, its default, its check."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainables.parallel import Parallelism
from trainables.settings import Settings

GPU_PACK = 16
"""Trials per pack on a GPU if the setting is ``auto``; more gain little (benchmarks/results/packing.md)."""


class SearchSettings(Settings):
    """The search phase."""

    trials: int = Field(8, ge=1, description="trials per method")
    sampler: Literal["tpe", "gp", "random", "cmaes"] = Field("tpe", description="Optuna's sampler")
    early_stopping: Literal["asha", "none"] = Field("asha", description="what stops trials early")
    grace_evaluations: int = Field(
        2, ge=1, description="evaluations after which a trial may first be stopped"
    )
    reduction_factor: int = Field(3, ge=2, description="at each rung, ASHA lets one trial in this many go on")
    keep_checkpoints: int = Field(
        1, ge=1, description="best trials per method and phase whose checkpoint is kept"
    )


class ConfirmSettings(Settings):
    """The confirm phase."""

    seeds: int = Field(
        5, ge=0, description="fresh seeds for each method's best configuration; 0 skips the phase"
    )


class BudgetSettings(Settings):
    """What each method may spend in the search phase, instead of a number of trials."""

    train_seconds: float | None = Field(None, gt=0, description="of training, per method")
    examples: int | None = Field(None, ge=1, description="to train on, per method")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.train_seconds is not None and self.examples is not None:
            raise ValueError("train_seconds and examples are both set; expected one of them")
        return self

    @property
    def unit(self) -> Literal["train_seconds", "examples"] | None:
        """What is counted; None where search.trials is the budget."""
        if self.train_seconds is not None:
            return "train_seconds"
        return "examples" if self.examples is not None else None

    @property
    def limit(self) -> float:
        """How much of it each method may spend."""
        return self.train_seconds or self.examples or float("inf")


class ResourceSettings(Settings):
    """What one trial gets; ``resources: auto`` is short for ``{auto: true}``."""

    auto: bool = Field(False, description="measure each method's memory and set the resources from that")
    cpus_per_trial: float = Field(1, gt=0, description="CPU cores of each worker; torch uses as many threads")
    gpus_per_trial: float = Field(
        0, ge=0, description="GPUs of each worker; a fraction lets trials share one"
    )
    memory_per_trial: int | None = Field(
        None, ge=1, description="bytes of main memory of each worker; null asks for none"
    )
    workers_per_trial: int = Field(1, ge=1, description="processes that train a trial; they split batches")
    trials_per_pack: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1,
        description="trials that train side by side in one process, with the resources of one; auto: 1 on"
        f" CPUs, {GPU_PACK} on a GPU",
    )
    parallelism: Parallelism = Field(
        "ddp",
        description="what each of a trial's workers holds: the whole model (ddp), or a part of it (fsdp)",
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, record training steps on texts of up to 128 tokens as CUDA graphs, which are"
        " launched at once; false launches kernel by kernel",
    )
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; null is as many as fit")
    max_failures: int = Field(
        2, ge=0, description="times a trial continues from its last evaluation after its worker or node died"
    )
    trial_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds without a report after which a worker is killed as hanging; null: never",
    )

    @property
    def pack_size(self) -> int:
        """How many trials train side by side in one process."""
        if self.trials_per_pack == "auto":
            return GPU_PACK if self.gpus_per_trial else 1
        return self.trials_per_pack

    @model_validator(mode="after")
    def _check_pack(self) -> Self:
        if self.auto and self.trials_per_pack != 1:
            raise ValueError("auto measures trials one at a time; expected trials_per_pack of 1")
        if self.pack_size == 1:
            return self
        if self.workers_per_trial > 1:
            raise ValueError(
                f"trials_per_pack: {self.pack_size} trials share a process, and workers_per_trial gives each "
                f"{self.workers_per_trial}; expected one of them to be 1"
            )
        if self.gpus_per_trial > 1:
            raise ValueError(
                f"gpus_per_trial: a pack trains on one GPU or a part of it, got {self.gpus_per_trial:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.gpus_per_trial > 1 and not float(self.gpus_per_trial).is_integer():
            raise ValueError(
                f"gpus_per_trial: expected a part of one GPU or a whole number, got {self.gpus_per_trial:g}"
            )
        if self.workers_per_trial > 1 and not float(self.gpus_per_trial).is_integer():
            raise ValueError(
                f"gpus_per_trial: a trial of {self.workers_per_trial} workers needs whole GPUs for each, "
                f"got {self.gpus_per_trial:g}; expected 0 or 1"
            )
        if self.parallelism == "fsdp" and self.workers_per_trial == 1:
            raise ValueError(
                "parallelism: fsdp needs several workers; expected workers_per_trial of at least 2"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, values: Any) -> Any:
        if isinstance(values, str) and values != "auto":
            raise ValueError(f"{values}: unknown; expected auto, or settings such as cpus_per_trial")
        return {"auto": True} if values == "auto" else values

    @model_validator(mode="after")
    def _check_auto(self) -> Self:
        both = [name for name in ("gpus_per_trial", "memory_per_trial") if name in self.model_fields_set]
        if self.auto and both:
            raise ValueError(f"{both[0]} is set, and auto would set it; expected one of them")
        if self.auto and self.workers_per_trial > 1:
            raise ValueError("auto measures trials of one worker; expected workers_per_trial of 1")
        return self


class LoggingSettings(Settings):
    """Other programs that are told of every trial, through Ray Tune's callbacks, besides the result set."""

    tensorboard: bool = Field(False, description="event files in tensorboard/ of the run directory")
    mlflow: str | None = Field(
        None, min_length=1, description="MLflow tracking URI, such as sqlite:///mlflow.db"
    )
    wandb: str | None = Field(None, min_length=1, description="project of Weights & Biases")

    @property
    def wanted(self) -> list[str]:
        """Names of the settings that ask for a logger."""
        return [name for name, value in self.model_dump().items() if value]
