"""Reads the dataset and base weights once, and finds every problem with them before any trial starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.notices import notices
from search_spaces.parsing import split_names
from trainables.base_model import BaseModel, build_model, check_target_modules
from trainables.data import TokenizedData, TokenizedSplit, load_data, read_data, token_limit
from trainables.errors import InputError
from trainables.methods import METHODS
from trainables.pretrained import load_base, load_tokenizer
from trainables.quantization import with_quantized

POSITIONS = ("wpe.weight", "position_embeddings.weight", "embed_positions.weight")
"""How names of tables end that have a row for each position; other models take texts of any length."""


@dataclass(frozen=True)
class Prepared:
    """What all trials share."""

    base: BaseModel
    data: TokenizedData
    test: TokenizedSplit  # for the confirm phase only


def prepare(experiment: Experiment, say: Callable[[str], None]) -> Prepared:
    """Read and tokenize the dataset and load the base weights.

    Arguments:
        experiment: what to prepare.
        say: is told of steps that take long, of examples that splits share, and what ``notices`` finds.

    Raises:
        ExperimentError: with all problems of data, model and target modules.
    """
    problems: list[InputError] = []
    raw = tokenizer = None
    try:
        raw = read_data(experiment.data, experiment.seed)
    except InputError as error:
        problems.append(error)
    try:
        tokenizer = load_tokenizer(experiment.model, say)
    except InputError as error:
        problems.append(error)
    if raw is None or tokenizer is None:
        raise ExperimentError(*problems)
    try:
        base = load_base(experiment.model, raw.labels, tokenizer.pad_token_id, say)
    except InputError as error:
        raise ExperimentError(error) from None
    for overlap in raw.overlaps:
        say(overlap)
    has_segments = (base.config.get("type_vocab_size") or 0) > 1
    data, test = load_data(raw, tokenizer, experiment.data.max_length, has_segments)
    for notice in notices(experiment, data, test, token_limit(tokenizer, experiment.data.max_length)):
        say(notice)
    problems = _unsupported(experiment, base) + _unreadable(data, test, base, experiment.data.max_length)
    if problems:
        raise ExperimentError(*problems)
    if any(METHODS[method.kind].quantized for method in experiment.methods.values()):
        base = with_quantized(base)
    return Prepared(base, data, test)


def check_fingerprints(row: Mapping[str, Any], prepared: Prepared) -> None:
    """Refuse data or a base model other than those of a recorded trial.

    Raises:
        ExperimentError: naming what has changed.
    """
    now = {
        "dataset_fingerprint": prepared.data.fingerprint,
        "base_model_fingerprint": prepared.base.fingerprint,
    }
    problems = [
        f"{column}: was {str(row.get(column))[:12]}, is {fingerprint[:12]} now; expected"
        " the same data and base model as before"
        for column, fingerprint in now.items()
        if row.get(column) != fingerprint
    ]
    if problems:
        raise ExperimentError(*problems)


def _unsupported(experiment: Experiment, base: BaseModel) -> list[InputError]:
    """Find settings of methods that the model does not support."""
    model = build_model(base, seed=0)
    problems = []
    for method in experiment.methods:
        for choice in experiment.values_of(method, "target_modules"):
            names = split_names(choice)
            try:
                if isinstance(names, list):
                    check_target_modules(model, names, f"methods.{method}.target_modules")
            except InputError as error:
                problems.append(error)
        recomputes = any(experiment.values_of(method, "gradient_checkpointing"))
        if recomputes and not model.supports_gradient_checkpointing:
            problems.append(
                InputError(
                    f"methods.{method}.gradient_checkpointing",
                    f"{type(model).__name__} does not support gradient checkpointing; expected false",
                )
            )
    return problems


def _unreadable(data: TokenizedData, test: TokenizedSplit, base: BaseModel, limit: int) -> list[InputError]:
    """Find texts that are too long for the model, and tokens that it does not know: errors in each trial."""
    splits, problems = (data.train, data.validation, test), []
    longest = max(split.longest for split in splits)
    positions = min(
        (len(rows) for name, rows in base.weights.items() if name.endswith(POSITIONS)), default=longest
    )
    if longest > positions:
        problems.append(
            InputError(
                "data.max_length",
                f"is {limit}, but the model has {positions} positions; expected at most as many",
            )
        )
    known = base.config.get("vocab_size") or 0
    largest = max(data.pad_token_id, *(int(split.tokens.max()) for split in splits))
    if known and largest >= known:
        problems.append(
            InputError(
                "model.path",
                f"its tokenizer has a token {largest}, but it knows {known}; expected its own tokenizer",
            )
        )
    return problems
