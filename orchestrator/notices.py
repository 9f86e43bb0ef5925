"""What a person must know of data and model before trials start, though none of it is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from orchestrator.experiment import Experiment
from results.errors import one_line
from trainables.data import MENTIONED, TokenizedData, TokenizedSplit
from trainables.errors import first_of
from trainables.settings import DataSettings
from trainables.sources import is_left_out, is_own

FEW_EXAMPLES = 5
"""With fewer examples of a label than this in a split, a person is told."""

MANY_LABELS = 50
"""With more labels than this, a person is told."""

SHOWN_LABELS, LONGEST_LABEL = 10, 40
"""Labels that a line shows, and characters of each: the wrong column may have thousands, of any length."""


def notices(experiment: Experiment, data: TokenizedData, test: TokenizedSplit, limit: int) -> Iterator[str]:
    """Find what a person must be told of.

    Arguments:
        experiment: whose data and model these are.
        data: the training and validation examples.
        test: the test examples.
        limit: tokens at which texts were cut.
    """
    if experiment.model.path == "embedded" and is_own(experiment.data):
        yield (
            "model.path is 'embedded', the built-in model: a tiny GPT-2 that has seen generated film reviews"
            " only, so accuracies on these data say nothing about real models; expected a hub id or a"
            " directory"
        )
    yield from _cut_texts(data.train, limit, experiment.data.max_length)
    splits = {"train": data.train, "validation": data.validation, "test": test}
    yield from _odd_labels(splits, data.labels, experiment.data.label)


def left_out(settings: DataSettings) -> Iterator[str]:
    """Find splits that were asked for by a name of the embedded dataset's, beside a file to train on."""
    for name in ("validation", "test"):
        split = getattr(settings, name)
        if name in settings.model_fields_set and split is not None and is_left_out(settings, split):
            yield f"data.{name}: no such file: {split}; it is cut from {settings.train} instead"


def label_counts(split: TokenizedSplit, labels: Sequence[str]) -> str:
    """Write how many examples of each label a split has, such as ``no 25% (10), yes 75% (30)``."""
    counts = np.bincount(split.labels, minlength=len(labels))
    told = [
        f"{_short(label)} {count / len(split):.0%} ({count:,})"
        for label, count in zip(labels, counts, strict=True)
    ]
    return first_of(told, SHOWN_LABELS)


def _cut_texts(train: TokenizedSplit, limit: int, max_length: int) -> Iterator[str]:
    cut = int((train.lengths == limit).sum())
    if cut > MENTIONED * len(train):
        why = f": the tokenizer of the model allows no more, though data.max_length is {max_length:,}"
        yield (
            f"{cut:,} of {len(train):,} training texts have {limit:,} tokens or more, and are cut there"
            f"{why if limit < max_length else ''}"
        )


def _odd_labels(splits: Mapping[str, TokenizedSplit], labels: Sequence[str], column: str) -> Iterator[str]:
    if len(labels) > MANY_LABELS:
        yield f"data.label: {column!r} has {len(labels):,} labels; if that is too many, name another column"
    rare = {name: _rare_labels(split, labels) for name, split in splits.items()}
    if any(rare.values()):
        told = (f"{first_of(found, 3)} in {name}" for name, found in rare.items() if found)
        yield (
            f"fewer than {FEW_EXAMPLES} examples of a label: {'; '.join(told)}; little can be learned or said"
            " about these"
        )
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(label.casefold(), []).append(repr(_short(label)))
    if groups := [" and ".join(group) for group in alike.values() if len(group) > 1]:
        yield f"labels that differ only in case count as different ones: {first_of(groups, 3)}"


def _rare_labels(split: TokenizedSplit, labels: Sequence[str]) -> list[str]:
    counts = np.bincount(split.labels, minlength=len(labels))
    return [
        f"{count} of {_short(label)!r}"
        for label, count in zip(labels, counts, strict=True)
        if count < FEW_EXAMPLES
    ]


def _short(label: str) -> str:
    """Return a label as a line can show it, without control codes."""
    return one_line(label if len(label) <= LONGEST_LABEL else f"{label[:LONGEST_LABEL]}...")
