"""Where examples come from: hub datasets, local files, or the embedded dataset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trainables.errors import InputError
from trainables.settings import DataSettings

FILE_KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


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
    except Exception as error:  # parsers raise errors of all kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(key, f"{file} could not be read as {file.suffix[1:]}: {reason}") from error
    if columns is not None:
        if len(columns) != frame.shape[1]:
            raise InputError("data.columns", f"names {len(columns)} columns, but {file} has {frame.shape[1]}")
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
    text = _texts(frame, "data.text", settings.text, origin)
    pairs = None
    if settings.text_pair is not None:
        pairs = _texts(frame, "data.text_pair", settings.text_pair, origin)
    labels = _column(frame, "data.label", settings.label, origin)
    empty = labels.isna() | (labels.astype(str).str.strip() == "")
    if empty.any():
        number = int(empty.to_numpy().argmax()) + 1
        raise InputError("data.label", f"example {number} of {origin} has no label")
    return SourceSplit(text, pairs, labels.tolist(), names, origin)


def _texts(frame: pd.DataFrame, key: str, name: str, origin: str) -> list[str]:
    values = _column(frame, key, name, origin).tolist()
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                key, f"example {number} of {origin}: expected text in column {name!r}, got {value!r}"
            )
    return values


def _column(frame: pd.DataFrame, key: str, name: str, origin: str) -> pd.Series[Any]:
    matches = [column for column in frame.columns if column == name]
    if len(matches) != 1:
        known = ", ".join(map(repr, frame.columns))
        what = "no column" if not matches else "more than one column"
        raise InputError(key, f"{origin} has {what} {name!r}; it has {known}")
    return frame[name]
