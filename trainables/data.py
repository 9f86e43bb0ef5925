"""Examples: split by a recorded rule, sampled, tokenized once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainables.errors import InputError, first_of
from trainables.settings import DataSettings
from trainables.sources import SourceSplit, is_left_out, read_split

NUMBER = re.compile(r"-?\d{1,18}")
"""A label that is a number, and sorts like one."""

MENTIONED = 0.01
"""Share of a split's examples that occur in another, or are cut, from which a person is told at once."""

SEGMENTS = "token_type_ids"
"""The name of segments in tokenizers and models."""


@dataclass(frozen=True)
class RawSplit:
    """Examples of one split."""

    texts: list[str]
    pairs: list[str] | None
    labels: NDArray[np.int64]  # [examples]
    example_ids: NDArray[np.int64]  # [examples]; row number in the source
    origin: str  # in words

    def take(self, rows: NDArray[np.int64], origin: str) -> RawSplit:
        """Keep some rows, in their order."""
        return RawSplit(
            [self.texts[row] for row in rows],
            [self.pairs[row] for row in rows] if self.pairs is not None else None,
            self.labels[rows],
            self.example_ids[rows],
            origin,
        )


@dataclass(frozen=True)
class RawData:
    """All splits before tokenization."""

    train: RawSplit
    validation: RawSplit
    test: RawSplit
    labels: tuple[str, ...]
    overlaps: tuple[str, ...] = ()  # splits of which many examples occur in another, in words


@dataclass(frozen=True)
class TokenizedSplit:
    """Tokens of one split, flat so that it is shared between processes without a copy."""

    tokens: NDArray[np.int32]  # [total tokens]
    offsets: NDArray[np.int64]  # [examples + 1]; example i is tokens[offsets[i]:offsets[i + 1]]
    labels: NDArray[np.int64]  # [examples]; index into TokenizedData.labels
    example_ids: NDArray[np.int64]  # [examples]; row number in the source split
    segments: NDArray[np.int8] | None = None  # [total tokens]; 1 in second texts, if the model takes them

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, ``[examples]``."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.max())

    def take(self, rows: NDArray[np.int64]) -> TokenizedSplit:
        """Keep some rows, in their order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return TokenizedSplit(
            self.tokens[places],
            offsets,
            self.labels[rows],
            self.example_ids[rows],
            None if self.segments is None else self.segments[places],
        )


@dataclass(frozen=True)
class TokenizedData:
    """What trials train on and are selected by. The test split is kept apart."""

    train: TokenizedSplit
    validation: TokenizedSplit
    labels: tuple[str, ...]  # label names, in the order of their indices
    pad_token_id: int
    fingerprint: str  # sha256 of all the above and of the test split
    splits: Mapping[str, str]  # how each split was made, in words


def read_data(settings: DataSettings, seed: int) -> RawData:
    """Read all splits, cut those that are missing from train, and take the requested samples.

    A validation or test split that is not given, or a test split without labels, is cut from train by a
    seeded, stratified rule, before ``max_train_examples`` is applied. Equal examples stay together.

    Raises:
        InputError: for anything wrong in the settings or the data.
    """
    source = read_split(settings, "data.train", settings.train)
    labels = _label_names(source)
    train = _number(source, labels, "data.train")
    validation = _read_optional(settings, "data.validation", settings.validation, labels)
    test = _read_optional(settings, "data.test", settings.test, labels)
    if test is None:
        train, test = _cut(train, settings.test_fraction, seed, "test")
    if validation is None:
        train, validation = _cut(train, settings.validation_fraction, seed, "validation")
    train = _sample(train, settings.max_train_examples, seed, "data.max_train_examples")
    validation = _sample(validation, settings.max_validation_examples, seed, "data.max_validation_examples")
    overlaps: list[str] = []
    validation = _note_overlap("validation", validation, {"train": train}, overlaps)
    test = _note_overlap("test", test, {"train": train, "validation": validation}, overlaps)
    return RawData(train, validation, test, labels, tuple(overlaps))


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Return the number of tokens at which texts are cut: ``max_length``, or the tokenizer's own limit."""
    return min(max_length, tokenizer.model_max_length)


def load_data(
    raw: RawData, tokenizer: PreTrainedTokenizerBase, max_length: int, with_segments: bool = False
) -> tuple[TokenizedData, TokenizedSplit]:
    """Tokenize all splits once, cut to the :func:`token_limit`, without padding; return data and test split.

    With ``with_segments``, tokens of pairs are marked with the text they belong to, if the tokenizer does so
    (Devlin et al. 2019, section 3).
    """
    splits = {"train": raw.train, "validation": raw.validation, "test": raw.test}
    tokenized = {
        name: _tokenize(split, tokenizer, max_length, with_segments) for name, split in splits.items()
    }
    pad_token_id = tokenizer.pad_token_id
    assert isinstance(pad_token_id, int)
    data = TokenizedData(
        train=tokenized["train"],
        validation=tokenized["validation"],
        labels=raw.labels,
        pad_token_id=pad_token_id,
        fingerprint=_fingerprint(tokenized, raw.labels, pad_token_id),
        splits={name: f"{len(split.texts):,} examples, {split.origin}" for name, split in splits.items()},
    )
    return data, tokenized["test"]


def stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Order rows so that every prefix has each label's share to within one example.

    Rows of a label are shuffled by the seed; the k-th of n rows is placed at (k + 1/2) / n. Prefixes
    are nested: a smaller sample is part of a larger one.
    """
    generator = np.random.default_rng(seed)
    places = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.argsort(places, kind="stable")


def _label_names(source: SourceSplit) -> tuple[str, ...]:
    if source.label_names is not None:
        return source.label_names
    names = sorted({_label_name(label) for label in source.labels}, key=_label_order)
    return tuple(names)


def _names_of_labels(source: SourceSplit) -> list[str]:
    """Return each example's label by name. Two sources of the same names may number them differently."""
    known = source.label_names
    if known is None:
        return [_label_name(label) for label in source.labels]
    return [known[label] if 0 <= label < len(known) else _label_name(label) for label in source.labels]


def _label_name(label: Any) -> str:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def _label_order(name: str) -> tuple[int, int, str]:
    """Sort numbers in numeric order, then words."""
    return (0, int(name), name) if NUMBER.fullmatch(name) else (1, 0, name)


def _number(source: SourceSplit, labels: Sequence[str], key: str) -> RawSplit:
    if not source.texts:
        raise InputError(key, f"{source.origin} is empty; expected at least one example")
    index_of = {name: index for index, name in enumerate(labels)}
    names = _names_of_labels(source)
    unknown = sorted(set(names) - set(labels))
    if unknown:
        known = first_of(labels, 10)
        raise InputError(
            key, f"{source.origin} has label {unknown[0]!r}, unknown in train, which has {known}"
        )
    indices = np.array([index_of[name] for name in names], dtype=np.int64)
    split = RawSplit(source.texts, source.pairs, indices, np.arange(len(indices)), source.origin)
    if key == "data.train" and len(np.unique(indices)) < 2:
        raise InputError(
            "data.label", f"{source.origin} has one class only, {labels[indices[0]]!r}; expected two or more"
        )
    return split


def _read_optional(
    settings: DataSettings, key: str, name: str | None, labels: Sequence[str]
) -> RawSplit | None:
    if name is None or is_left_out(settings, name):
        return None
    source = read_split(settings, key, name)
    # GLUE's test splits carry -1 for every label.
    if key == "data.test" and source.labels and all(_label_name(label) == "-1" for label in source.labels):
        return None
    return _number(source, labels, key)


def _cut(train: RawSplit, fraction: float, seed: int, name: str) -> tuple[RawSplit, RawSplit]:
    count = max(1, round(fraction * len(train.texts)))
    # Equal examples are one group; groups are numbered in the order of their first examples.
    group, _ = pd.factorize(np.array(_examples(train), dtype=object))
    _, firsts, copies = np.unique(group, return_index=True, return_counts=True)
    order = stratified_order(train.labels[firsts], seed)
    enough = int(np.searchsorted(np.cumsum(copies[order]), count)) + 1
    is_chosen = np.isin(group, order[:enough])
    rule = f"cut from {train.origin} ({fraction:.0%}, stratified, seed {seed})"
    rest = train.take(np.flatnonzero(~is_chosen), f"{train.origin} less {name}")
    if len(np.unique(rest.labels)) < 2:
        raise InputError(
            f"data.{name}",
            f"{train.origin} is too small to cut {name} from it; give data.{name} a file or split",
        )
    return rest, train.take(np.flatnonzero(is_chosen), rule)


def _sample(split: RawSplit, count: int | None, seed: int, key: str) -> RawSplit:
    if count is None or count >= len(split.texts):
        return split
    order = stratified_order(split.labels, seed)
    _, firsts = np.unique(split.labels[order], return_index=True)
    if (enough := int(firsts.max()) + 1) > count:
        raise InputError(
            key,
            f"is {count}, too few for a stratified sample with all {len(firsts):,} labels of these"
            f" {len(split.texts):,} examples; expected at least {enough:,}",
        )
    rows = np.sort(order[:count])
    return split.take(rows, f"sample of {len(split.texts):,} of {split.origin} (stratified, seed {seed})")


def _examples(split: RawSplit) -> list[str]:
    """Return texts, or pairs of them, as they are compared: whatever their case and spaces."""
    pairs = split.pairs or [""] * len(split.texts)
    both = (f"{text} \0 {other}" for text, other in zip(split.texts, pairs, strict=True))
    return [" ".join(text.casefold().split()) for text in both]


def _note_overlap(
    name: str, split: RawSplit, others: Mapping[str, RawSplit], overlaps: list[str]
) -> RawSplit:
    """Note how many examples of a split also occur in others, and which overlaps a person must know of."""
    examples = _examples(split)
    for other, its in others.items():
        known = set(_examples(its))
        count = sum(example in known for example in examples)
        if count:
            split = replace(split, origin=f"{split.origin}; {count:,} also occur in {other}")
        if count >= MENTIONED * len(examples):
            overlaps.append(
                f"{count:,} of {len(examples):,} {name} examples also occur in {other}: accuracies may be"
                " better than on new texts"
            )
    return split


def _tokenize(
    split: RawSplit, tokenizer: PreTrainedTokenizerBase, max_length: int, with_segments: bool
) -> TokenizedSplit:
    has_segments = with_segments and split.pairs is not None and SEGMENTS in tokenizer.model_input_names
    encoded = tokenizer(
        split.texts,
        split.pairs,
        truncation=True,
        max_length=token_limit(tokenizer, max_length),
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=has_segments,
    )
    # A text may have no token that the tokenizer knows, but the model needs at least one position.
    rows = [ids or [tokenizer.pad_token_id] for ids in encoded["input_ids"]]
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return TokenizedSplit(
        tokens=np.concatenate([np.asarray(ids, dtype=np.int32) for ids in rows]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=split.labels,
        example_ids=split.example_ids,
        segments=np.concatenate([np.asarray(ids or [0], dtype=np.int8) for ids in encoded[SEGMENTS]])
        if has_segments
        else None,
    )


def _fingerprint(splits: Mapping[str, TokenizedSplit], labels: Sequence[str], pad_token_id: int) -> str:
    digest = hashlib.sha256(repr((tuple(labels), pad_token_id)).encode())
    for name, split in splits.items():
        digest.update(name.encode())
        for array in (split.tokens, split.offsets, split.labels, split.example_ids, split.segments):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
