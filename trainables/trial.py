"""One trial as a generator of evaluations. Whoever drives it decides what happens between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from results.schema import Status
from trainables.base_model import BaseModel, build_model, own_trainable_parameters, recompute_activations
from trainables.batches import Batch, batches, training_batches
from trainables.checkpoints import Elsewhere, load_checkpoint, save_checkpoint
from trainables.data import TokenizedData, TokenizedSplit
from trainables.dropout import draw_ahead
from trainables.errors import DivergedError
from trainables.evaluation import Evaluation as Evaluation
from trainables.evaluation import TestOutcome as TestOutcome
from trainables.features import remember_features
from trainables.measure import (
    Stopwatch,
    count_parameters,
    large_blocks_apart,
    model_bytes,
    peak_memory,
    reset_peak_memory,
)
from trainables.methods import METHODS, MethodSettings
from trainables.parallel import ALONE, Group, spread, total
from trainables.quantization import quantize
from trainables.settings import TrainingSettings
from trainables.state import Progress, Trained, TrialState
from trainables.stretch import Stretch, train
from trainables.training import RandomStream, evaluate, make_optimizer

CPU = torch.device("cpu")

MOST_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Of an evaluation batch, at most, by device.

Of more, what one layer hands to the next leaves a CPU's cache, and an evaluation takes more of a GPU's memory
than training does.
"""

OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What stands in the plain errors of PyTorch's allocator on a CPU, of CUDA itself and of its libraries."""


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's numbers besides the data, the base model and the device."""

    trial_id: str  # such as "lora-003"
    method: str  # the experiment's name for the method
    kind: str  # the method's kind, a key of trainables.methods.METHODS
    seed: int  # decides head and adapter initialization, data order and dropout
    settings: MethodSettings  # the method's own hyperparameters
    training: TrainingSettings
    threads: int = 1  # torch threads on a CPU


@dataclass(frozen=True)
class ModelSummary:
    """What a method makes of the base model."""

    trainable_parameters: int
    total_parameters: int
    model_bytes: int


def run_trial(
    spec: TrialSpec,
    data: TokenizedData,
    base: BaseModel,
    checkpoint_directory: Path | None,
    test: TokenizedSplit | None = None,
    state: TrialState | None = None,
    group: Group = ALONE,
    device: torch.device = CPU,
    elsewhere: Elsewhere | None = None,
) -> Iterator[Evaluation]:
    """Train one trial, yielding an evaluation ``evaluations_per_epoch`` times per epoch.

    A trial that goes on from a state yields what it would have yielded next, with the same numbers.

    Arguments:
        spec: what to train.
        data: its train and validation splits are used; its test split is not touched.
        base: the base model's shared weights.
        checkpoint_directory: keeps the best checkpoint so far; None keeps none.
        test: judges the best checkpoint once, after the last step; it takes a ``checkpoint_directory``.
        state: where to go on from, and what the caller may save between two evaluations.
        group: the processes that train it together, which all drive it in step; a batch is split between
            them, its loss and gradient stay those of the whole batch. Rank 0 measures.
        device: trains it; ``cuda`` is the process's current GPU.
        elsewhere: has what ``checkpoint_directory`` has, for processes that do not see it.

    Raises:
        DivergedError: if a loss is no longer finite.
        torch.OutOfMemoryError: if a GPU's memory runs out.
    """
    trial = (spec, data, base, checkpoint_directory, test, state, group, device, elsewhere)
    return train_alone(trial_course(*trial))


def train_alone(course: Iterator[Stretch | Evaluation]) -> Iterator[Evaluation]:
    """Take all training steps of a :func:`trial_course` and yield its evaluations."""
    for asked in course:
        if isinstance(asked, Stretch):
            train(asked)
        else:
            yield asked


def trial_course(
    spec: TrialSpec,
    data: TokenizedData,
    base: BaseModel,
    checkpoint_directory: Path | None,
    test: TokenizedSplit | None = None,
    state: TrialState | None = None,
    group: Group = ALONE,
    device: torch.device = CPU,
    elsewhere: Elsewhere | None = None,
) -> Iterator[Stretch | Evaluation]:
    """Do all of :func:`run_trial` but its training steps, which whoever asks takes.

    Each stretch that it yields must have been trained when it is asked to go on; then comes an evaluation.
    """
    if device.type == "cpu":
        torch.set_num_threads(spec.threads)
    torch.set_float32_matmul_precision(base.settings.float32_matmul)
    reset_peak_memory(device)
    state = state or TrialState()
    done = state.progress
    setup = Stopwatch(device, done.setup_seconds)
    evaluating = Stopwatch(device, done.evaluation_seconds)
    settings, dtype = spec.training, getattr(torch, base.settings.dtype)
    steps_per_epoch = math.ceil(len(data.train) / settings.batch_size)
    total_steps = settings.epochs * steps_per_epoch
    stops = evaluation_steps(total_steps, settings.epochs * settings.evaluations_per_epoch)
    with setup.running(), large_blocks_apart():  # of which most are there for a moment only
        trained, summary = set_up(spec, base, total_steps, device, group, data.train.longest)
        training_data = training_batches(
            data.train, settings.batch_size, data.pad_token_id, spec.seed, done.step, group
        )
        state.attach(trained)
        features = remember_features(trained.model, group)

    for last_step in stops[done.evaluation :]:
        part = Stretch(trained, islice(training_data, last_step - done.step), settings, dtype)
        yield part
        if not math.isfinite(train_loss := part.mean_loss()):
            raise DivergedError(f"the training loss became {train_loss} by step {last_step}")
        with evaluating.running(), large_blocks_apart(settings.saves_memory):
            scores = evaluate(
                trained.model,
                evaluation_batches(data.validation, data.pad_token_id, settings, device, group),
                data.validation.labels,
                device,
                dtype,
                group,
                features,
            )
        is_best = done.best is None or (scores.accuracy, -scores.loss) > done.best
        checkpoint = (
            save_checkpoint(trained.model, checkpoint_directory, group)
            if is_best and checkpoint_directory
            else None
        )
        if checkpoint and elsewhere:
            elsewhere.put(Path(checkpoint.path))
        peak, source = peak_memory(device)
        done = state.progress = Progress(
            evaluation=done.evaluation + 1,
            step=last_step,
            examples=done.examples + part.examples,
            tokens=done.tokens + part.tokens,
            best=(scores.accuracy, -scores.loss) if is_best else done.best,
            train_seconds=done.train_seconds + part.seconds,
            evaluation_seconds=evaluating.seconds,
            setup_seconds=setup.seconds,
            peak_memory_bytes=max(peak, done.peak_memory_bytes or 0) if peak else None,
        )
        yield Evaluation(
            evaluation=done.evaluation,
            step=done.step,
            epoch=done.step / steps_per_epoch,
            examples=done.examples,
            tokens=done.tokens,
            train_loss=train_loss,
            validation_loss=scores.loss,
            validation_accuracy=scores.accuracy,
            validation_macro_f1=scores.macro_f1,
            train_seconds=done.train_seconds,
            evaluation_seconds=done.evaluation_seconds,
            setup_seconds=done.setup_seconds,
            peak_memory_bytes=done.peak_memory_bytes,
            peak_memory_source=source,
            trainable_parameters=summary.trainable_parameters,
            total_parameters=summary.total_parameters,
            model_bytes=summary.model_bytes,
            is_best=is_best,
            is_last=done.step == total_steps,
            checkpoint=checkpoint,
            device=_device_name(device),
            test=judge(trained, checkpoint_directory, test, data.pad_token_id, settings, dtype, elsewhere)
            if test is not None and done.step == total_steps
            else None,
        )


def set_up(
    spec: TrialSpec, base: BaseModel, total_steps: int, device: torch.device, group: Group, longest: int
) -> tuple[Trained, ModelSummary]:
    """Build what a trial trains on texts of ``longest`` tokens at most, and say how large its model is."""
    stream = RandomStream(spec.seed, device)
    with stream.active():
        model = wrap_base(base, spec.kind, spec.settings, spec.seed)
    if spec.training.gradient_checkpointing:
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(whole, PreTrainedModel)
        recompute_activations(whole)
    if group.rank > 0:  # other dropout for its share of a batch
        stream = RandomStream(spec.seed + group.rank, device)
    summary = ModelSummary(*count_parameters(model), model_bytes(model))
    stepped = spread(model, group, device, spec.training.micro_batch_size is not None)
    optimizer, schedule = make_optimizer(model, spec.training, total_steps)
    model.train()
    masks = draw_ahead(model, longest)
    return Trained(model, stepped, optimizer, schedule, stream, masks, device, group), summary


def evaluation_batches(
    split: TokenizedSplit, pad_token_id: int, settings: TrainingSettings, device: torch.device, group: Group
) -> Iterator[Batch]:
    """Yield the batches of an evaluation, each of no more tokens than are good for the device."""
    most = MOST_TOKENS[device.type]
    return batches(split, settings.evaluation_batch_size, pad_token_id, group, most)


def judge(
    trained: Trained,
    checkpoint_directory: Path | None,
    test: TokenizedSplit,
    pad_token_id: int,
    settings: TrainingSettings,
    dtype: torch.dtype,
    elsewhere: Elsewhere | None,
) -> TestOutcome:
    """Evaluate a trained model on the test split, with the weights of its checkpoint."""
    assert checkpoint_directory is not None, "the best checkpoint is not in memory any more"
    device, group = trained.device, trained.group
    watch = Stopwatch(device)
    total(torch.zeros(1), group, device)  # rank 0 has written the checkpoint before others read it
    if elsewhere:
        elsewhere.get(checkpoint_directory)
    with watch.running():
        load_checkpoint(trained.model, checkpoint_directory)
        split = evaluation_batches(test, pad_token_id, settings, device, group)
        scores = evaluate(trained.model, split, test.labels, device, dtype, group)
    return TestOutcome(
        loss=scores.loss,
        accuracy=scores.accuracy,
        macro_f1=scores.macro_f1,
        seconds=watch.seconds,
        example_ids=test.example_ids,
        labels=test.labels,
        logits=scores.logits,
    )


def wrap_base(base: BaseModel, kind: str, settings: MethodSettings, seed: int) -> nn.Module:
    """Build the base model with a head from ``seed`` and let the method wrap it."""
    method, model = METHODS[kind], build_model(base, seed)
    if method.quantized:
        quantize(model, base.quantized)
    wrapped = method.wrap(model, settings)
    own_trainable_parameters(wrapped)
    return wrapped


def describe(base: BaseModel, kind: str, settings: MethodSettings) -> ModelSummary:
    """Say how large a trial's model will be, by building it."""
    model = wrap_base(base, kind, settings, seed=0)
    return ModelSummary(*count_parameters(model), model_bytes(model))


def failure_status(error: Exception) -> Status:
    """Return the status of a trial that raised ``error``: diverged, out_of_memory or failed."""
    if isinstance(error, DivergedError):
        return "diverged"
    says_so = isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or says_so:
        return "out_of_memory"
    return "failed"


def evaluation_steps(total_steps: int, evaluations: int) -> list[int]:
    """Spread evaluations evenly; the last comes after the last step. Fewer steps make fewer evaluations."""
    steps = [round(number * total_steps / evaluations) for number in range(1, evaluations + 1)]
    return [step for step in dict.fromkeys(steps) if step > 0]


def _device_name(device: torch.device) -> str:
    return f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
