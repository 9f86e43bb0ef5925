"""One trial as a generator of evaluations. Its driver decides what happens between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from results.evaluation import Checkpoint, Evaluation, TestOutcome
from results.schema import Status
from trainables.base_model import BaseModel
from trainables.batches import Batch, batches, training_batches
from trainables.checkpoints import Elsewhere, load_checkpoint, save_checkpoint
from trainables.data import TokenizedData, TokenizedSplit
from trainables.errors import DivergedError
from trainables.features import Features, remember_features
from trainables.graphs import MULTIPLE
from trainables.measure import (
    Stopwatch,
    is_out_of_memory,
    large_blocks_apart,
    peak_memory,
    reset_peak_memory,
)
from trainables.parallel import ALONE, Group, total
from trainables.scoring import Scores, evaluate
from trainables.settings import TrainingSettings
from trainables.setup import ModelSummary, TrialSpec, set_up
from trainables.state import Progress, TrialState
from trainables.stretch import Course, Stretch, train
from trainables.training import Trained

CPU = torch.device("cpu")

MOST_TOKENS = {"cpu": 1024, "cuda": 4096}
"""The most tokens of an evaluation batch, by device.

With more, activations no longer fit a CPU's cache, and an evaluation takes more GPU memory than training.
"""

PADDED_TO = {"cpu": 1, "cuda": MULTIPLE}
"""The multiple of tokens that training batches are padded to, by device."""


@dataclass(frozen=True)
class TrialInputs:
    """What a trial is run with; a ``test`` split needs a ``checkpoint_directory``."""

    spec: TrialSpec
    data: TokenizedData  # train and validation splits; the test split is not among them
    base: BaseModel  # shared weights
    checkpoint_directory: Path | None = None  # keeps the best checkpoint so far; None keeps none
    test: TokenizedSplit | None = None  # judges the best checkpoint once, after the last step
    state: TrialState | None = None  # where to go on from, and what the caller may save between evaluations
    group: Group = ALONE  # processes that train the trial together, in step; each batch is split between them
    device: torch.device = CPU  # cuda is the process's current GPU
    elsewhere: Elsewhere | None = None  # another copy of the directory, for processes that do not see it

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training examples."""
        return math.ceil(len(self.data.train) / self.spec.training.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole trial."""
        return self.spec.training.epochs * self.steps_per_epoch


def run_trial(inputs: TrialInputs) -> Iterator[Evaluation]:
    """Train one trial, yielding an evaluation ``evaluations_per_epoch`` times per epoch.

    A trial that goes on from a state yields what it would have yielded next, with the same numbers. All
    processes of a group must drive it; the loss and gradient stay those of the whole batch. Rank 0 measures.

    Raises:
        DivergedError: if a loss is no longer finite.
        torch.OutOfMemoryError: if a GPU's memory runs out.
    """
    return train_alone(trial_course(inputs))


def train_alone(course: Course) -> Iterator[Evaluation]:
    """Take all training steps of a :func:`trial_course` and yield its evaluations."""
    for item in course:
        if isinstance(item, Stretch):
            train(item)
        else:
            yield item


def trial_course(inputs: TrialInputs) -> Course:
    """Do all of :func:`run_trial` but the training steps, which the caller takes.

    Yields a stretch, which the caller must train before it asks for more, then an evaluation, and so on.
    """
    spec, data, device, settings = inputs.spec, inputs.data, inputs.device, inputs.spec.training
    if device.type == "cpu":
        torch.set_num_threads(spec.threads)
    torch.set_float32_matmul_precision(inputs.base.settings.float32_matmul)
    reset_peak_memory(device)
    state = inputs.state or TrialState()
    done = state.progress
    setup = Stopwatch(device, done.setup_seconds)
    evaluating = Stopwatch(device, done.evaluation_seconds)
    with setup.running(), large_blocks_apart():  # most of them are short-lived
        trained, summary = set_up(
            spec, inputs.base, inputs.total_steps, device, inputs.group, data.train.longest
        )
        training_data = training_batches(
            data.train,
            settings.batch_size,
            data.pad_token_id,
            spec.seed,
            done.step,
            inputs.group,
            PADDED_TO[device.type],
        )
        state.attach(trained)
        features = remember_features(trained.model, inputs.group)

    evaluations = settings.epochs * settings.evaluations_per_epoch
    for last_step in evaluation_steps(inputs.total_steps, evaluations)[done.evaluation :]:
        stretch = Stretch(trained, islice(training_data, last_step - done.step), settings, inputs.base.dtype)
        yield stretch
        if not math.isfinite(train_loss := stretch.mean_loss()):
            raise DivergedError(f"the training loss became {train_loss} by step {last_step}")
        validation = _validate(inputs, trained, features, done.best, evaluating)
        peak, peak_source = peak_memory(device)
        done = state.progress = Progress(
            evaluation=done.evaluation + 1,
            step=last_step,
            examples=done.examples + stretch.examples,
            tokens=done.tokens + stretch.tokens,
            best=validation.scores.merit if validation.is_best else done.best,
            train_seconds=done.train_seconds + stretch.seconds,
            evaluation_seconds=evaluating.seconds,
            setup_seconds=setup.seconds,
            peak_memory_bytes=max(peak, done.peak_memory_bytes or 0) if peak else None,
        )
        is_judged = inputs.test is not None and last_step == inputs.total_steps
        test = judge(inputs, trained) if is_judged else None
        yield _make_evaluation(inputs, summary, done, train_loss, validation, peak_source, test)


@dataclass(frozen=True)
class _Validation:
    """A model's outcome on the validation split."""

    scores: Scores
    is_best: bool
    checkpoint: Checkpoint | None  # written where the model is the best so far


def _validate(
    inputs: TrialInputs,
    trained: Trained,
    features: Features | None,
    best: tuple[float, float] | None,
    watch: Stopwatch,
) -> _Validation:
    """Evaluate on the validation split and save the model if it beats ``best``; time only the former."""
    with watch.running(), large_blocks_apart(inputs.spec.training.saves_memory):
        scores = _evaluate(inputs, trained.model, inputs.data.validation, features)
    is_best = best is None or scores.merit > best
    checkpoint = None
    if is_best and inputs.checkpoint_directory:
        checkpoint = save_checkpoint(trained.model, inputs.checkpoint_directory, inputs.group)
        if checkpoint and inputs.elsewhere:
            inputs.elsewhere.put(Path(checkpoint.path))
    return _Validation(scores, is_best, checkpoint)


def _evaluate(
    inputs: TrialInputs, model: nn.Module, split: TokenizedSplit, features: Features | None = None
) -> Scores:
    device, group = inputs.device, inputs.group
    cut = evaluation_batches(split, inputs.data.pad_token_id, inputs.spec.training, device, group)
    return evaluate(model, cut, split.labels, device, inputs.base.dtype, group, features)


def _make_evaluation(
    inputs: TrialInputs,
    summary: ModelSummary,
    progress: Progress,
    train_loss: float,
    validation: _Validation,
    peak_source: str | None,
    test: TestOutcome | None,
) -> Evaluation:
    return Evaluation(
        evaluation=progress.evaluation,
        step=progress.step,
        epoch=progress.step / inputs.steps_per_epoch,
        examples=progress.examples,
        tokens=progress.tokens,
        train_loss=train_loss,
        validation_loss=validation.scores.loss,
        validation_accuracy=validation.scores.accuracy,
        validation_macro_f1=validation.scores.macro_f1,
        train_seconds=progress.train_seconds,
        evaluation_seconds=progress.evaluation_seconds,
        setup_seconds=progress.setup_seconds,
        peak_memory_bytes=progress.peak_memory_bytes,
        peak_memory_source=peak_source,
        trainable_parameters=summary.trainable_parameters,
        total_parameters=summary.total_parameters,
        model_bytes=summary.model_bytes,
        is_best=validation.is_best,
        is_last=progress.step == inputs.total_steps,
        checkpoint=validation.checkpoint,
        device=_device_name(inputs.device),
        test=test,
    )


def evaluation_batches(
    split: TokenizedSplit, pad_token_id: int, settings: TrainingSettings, device: torch.device, group: Group
) -> Iterator[Batch]:
    """Yield the batches of an evaluation, each of at most :data:`MOST_TOKENS` for the device."""
    most = MOST_TOKENS[device.type]
    return batches(split, settings.evaluation_batch_size, pad_token_id, group, most)


def judge(inputs: TrialInputs, trained: Trained) -> TestOutcome:
    """Evaluate a trained model on the test split, with the weights of its checkpoint."""
    directory, test = inputs.checkpoint_directory, inputs.test
    assert test is not None
    assert directory is not None, "the best checkpoint is no longer in memory"
    watch = Stopwatch(inputs.device)
    # Wait for all ranks: none may read the checkpoint before rank 0 has written it.
    total(torch.zeros(1), inputs.group, inputs.device)
    if inputs.elsewhere:
        inputs.elsewhere.get(directory)
    with watch.running():
        load_checkpoint(trained.model, directory)
        scores = _evaluate(inputs, trained.model, test)
    return TestOutcome(
        loss=scores.loss,
        accuracy=scores.accuracy,
        macro_f1=scores.macro_f1,
        seconds=watch.seconds,
        example_ids=test.example_ids,
        labels=test.labels,
        logits=scores.logits,
    )


def failure_status(error: Exception) -> Status:
    """Return the status of a trial that raised ``error``: diverged, out_of_memory or failed."""
    if isinstance(error, DivergedError):
        return "diverged"
    return "out_of_memory" if is_out_of_memory(error) else "failed"


def evaluation_steps(total_steps: int, evaluations: int) -> list[int]:
    """Spread evaluations evenly, the last one after the last step; if steps are fewer, one after each."""
    steps = [round(number * total_steps / evaluations) for number in range(1, evaluations + 1)]
    return [step for step in dict.fromkeys(steps) if step > 0]


def _device_name(device: torch.device) -> str:
    return f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
