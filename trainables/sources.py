"""Where examples come from: hub datasets, local files, or the embedded dataset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainables.errors import NOT_UTF8, InputError, first_of
from trainables.settings import DataSettings

FILE_KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

SHOWN_ROWS = 5
"""The most examples that a message names."""

TSV_QUOTES = (
    "In .tsv files quotes are part of the text, and each line is an example; texts with line breaks need .csv"
)
"""What may be wrong with a file whose lines are too short."""


@dataclass(frozen=True)
class SourceSplit:
    """Examples as they were read, before labels are numbered."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    label_names: tuple[str, ...] | None  # where the source names its integer labels
    origin: str  # "train of glue/sst2", "file dev.tsv"


def trains_on_file(settings: DataSettings) -> bool:
    """Say whether the training split is a local file."""
    return Path(settings.train).expanduser().is_file()


def is_own(settings: DataSettings) -> bool:
    """Say whether the training split is anything but the embedded dataset's."""
    return settings.path != "embedded" or trains_on_file(settings)


def dataset_name(settings: DataSettings) -> str:
    """Name the source of the training split: its file, or the hub id and configuration."""
    if settings.path is None or trains_on_file(settings):
        return settings.train
    return "/".join(filter(None, (settings.path, settings.config)))


def is_left_out(settings: DataSettings, split: str) -> bool:
    """Say whether a split has its default name only: the training data come from a file, and it is none."""
    from trainables.embedded import embedded_splits

    is_file = Path(split).expanduser().is_file()
    by_default = settings.path in (None, "embedded") and split in embedded_splits()
    return by_default and trains_on_file(settings) and not is_file


def read_split(settings: DataSettings, key: str, split: str) -> SourceSplit:
    """Read one split: the file ``split`` if there is one, else that split of ``settings.path``.

    Arguments:
        settings: the experiment's.
        key: which of its keys named the split, such as ``data.train``.
        split: file or name.

    Raises:
        InputError: for anything that cannot be read or does not match the settings.
    """
    file = Path(split).expanduser()
    if file.is_file():
        frame, names = _read_file(file, key, settings.columns), None
        origin = f"file {file.name}"
    elif (
        settings.path is None
        or file.suffix in FILE_KINDS
        or "/" in split
        or (settings.path == "embedded" and trains_on_file(settings))
    ):
        raise InputError(key, f"no such file: {split}")
    elif settings.path == "embedded":
        return _read_embedded(settings, key, split)
    else:
        frame, names = _read_hub(settings, key, split)
        origin = f"{split} of {'/'.join(filter(None, (settings.path, settings.config)))}"
    return _check_columns(frame, settings, origin, names)


def _read_file(file: Path, key: str, columns: Sequence[str] | None) -> pd.DataFrame:
    if file.suffix not in FILE_KINDS:
        raise InputError(key, f"{file} ends in {file.suffix!r}; expected one of {', '.join(FILE_KINDS)}")
    try:
        frame = _parse(file, columns)
    except UnicodeDecodeError as error:
        raise InputError(key, f"{file} {NOT_UTF8}") from error
    except Exception as error:  # parsers raise errors of all kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = f". {TSV_QUOTES}" if file.suffix == ".tsv" and isinstance(error, pd.errors.ParserError) else ""
        raise InputError(key, f"{file} could not be read as {file.suffix[1:]}: {reason}{hint}") from error
    if columns is not None:
        if len(columns) != frame.shape[1]:
            raise InputError("data.columns", f"names {len(columns)} columns, but {file} has {frame.shape[1]}")
        if len(frame) and [str(value).strip() for value in frame.iloc[0]] == list(columns):
            raise InputError(
                "data.columns",
                f"{file} begins with these names, which would be its first example; expected none for files"
                " with a header",
            )
        frame.columns = pd.Index(columns)
    return frame


def _parse(file: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    if file.suffix in (".jsonl", ".json"):
        return pd.read_json(file, lines=file.suffix == ".jsonl", dtype=False)
    # Sentences contain bare quotes, and tab-separated files need no quoting.
    kind = {"sep": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    # All is read as text: the labels 1 and 01 differ. So is the header, where pandas would rename duplicates.
    rows = pd.read_csv(file, header=None, dtype=str, keep_default_na=False, **kind)
    if columns is not None:
        return rows
    return rows[1:].set_axis(rows.iloc[0], axis="columns").reset_index(drop=True)


def _read_hub(settings: DataSettings, key: str, split: str) -> tuple[pd.DataFrame, tuple[str, ...] | None]:
    import datasets

    assert settings.path is not None
    try:
        loaded = datasets.load_dataset(settings.path, settings.config, split=split)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # Only a wrong split name is not the dataset's own failure.
        where = key if "split" in reason.lower() else "data.path"
        raise InputError(
            where,
            f"split {split!r} of {settings.path} could not be loaded: {reason}; expected a local file, or a "
            "dataset of the hub, its configuration in data.config, and one of its splits",
        ) from error
    feature = loaded.features.get(settings.label)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return loaded.to_pandas(), names


def _read_embedded(settings: DataSettings, key: str, split: str) -> SourceSplit:
    from trainables.embedded import LABELS, embedded_splits

    splits = embedded_splits()
    if split not in splits:
        known = ", ".join(splits)
        raise InputError(
            key, f"there is no file {split!r}, and the embedded dataset has no such split; it has {known}"
        )
    asked = {"text": settings.text, "label": settings.label, "text_pair": settings.text_pair}
    for name, has in {"text": "sentence", "label": "label", "text_pair": None}.items():
        if asked[name] != has:
            known = "expected none" if has is None else f"expected {has!r}"
            raise InputError(f"data.{name}", f"the embedded dataset has no column {asked[name]!r}; {known}")
    texts, labels = splits[split]
    return SourceSplit(list(texts), None, list(labels), LABELS, f"{split} of the embedded dataset")


def _check_columns(
    frame: pd.DataFrame, settings: DataSettings, origin: str, names: tuple[str, ...] | None
) -> SourceSplit:
    for name in ("text", "text_pair"):
        if getattr(settings, name) == settings.label:
            raise InputError("data.label", f"is the same column as data.{name}: {settings.label!r}")
    columns: dict[str, list[Any]] = {}
    problems: list[InputError] = []
    for name in ("text", "text_pair", "label"):
        if getattr(settings, name) is not None:
            try:
                columns[name] = _column(frame, settings, name, origin)
            except InputError as error:
                problems.append(error)
    if problems:
        first, *others = problems
        raise InputError(first.key, "; ".join([first.message, *map(str, others)]))
    return SourceSplit(columns["text"], columns.get("text_pair"), columns["label"], names, origin)


def _column(frame: pd.DataFrame, settings: DataSettings, key: str, origin: str) -> list[Any]:
    """Return the texts or labels of a column, of which none may be missing."""
    name = getattr(settings, key)
    matches = [column for column in frame.columns if column == name]
    if len(matches) != 1:
        known = ", ".join(map(repr, frame.columns))
        what = "no column" if not matches else "more than one column"
        raise InputError(f"data.{key}", f"{origin} has {what} {name!r}; it has {known}")
    values = frame[name].tolist()
    if key == "label":
        given = frame[name].notna() & (frame[name].astype(str).str.strip() != "")
    else:
        given = pd.Series([isinstance(value, str) and bool(value.strip()) for value in values], dtype=bool)
    rows = np.flatnonzero(~given.to_numpy(dtype=bool))
    if not len(rows):
        return values
    kind = "label" if key == "label" else "text"
    told = first_of([f"{row + 1:,} ({values[row]!r:.20})" for row in rows], SHOWN_ROWS)
    is_quoted = any('"' in str(cell) for cell in frame.iloc[rows].to_numpy().ravel())
    raise InputError(
        f"data.{key}",
        f"column {name!r} of {origin} has no {kind} for {len(rows):,} of {len(values):,} examples: example"
        f" {told}, counted from 1 without header and empty lines; complete or remove them"
        f"{f'. {TSV_QUOTES}' if is_quoted and origin.endswith('.tsv') else ''}",
    )
