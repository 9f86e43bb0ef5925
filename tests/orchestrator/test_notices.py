"""What a person is told of data and model that are no error, and how a plan shows labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from orchestrator.experiment import Experiment
from orchestrator.notices import label_counts, left_out, notices
from orchestrator.prepare import prepare
from tests.conftest import data_settings
from trainables.data import TokenizedData, TokenizedSplit
from trainables.settings import DataSettings

OWN = {"model": {"path": "some/model"}, "data": {"path": None, "train": "mine.csv", "validation": None}}


def split(counts: Sequence[int]) -> TokenizedSplit:
    """Make so many one-token examples of each label."""
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels))
    return TokenizedSplit(rows.astype(np.int32), np.arange(len(labels) + 1), labels, rows)


def told(
    labels: Sequence[str], train: Sequence[int], others: Sequence[int] | None = None, **experiment: object
) -> list[str]:
    other = split(train if others is None else others)
    data = TokenizedData(split(train), other, tuple(labels), 0, "", {})
    return list(notices(Experiment.model_validate({**OWN, **experiment}), data, other, limit=64))


def test_nothing_is_told_where_nothing_is_odd() -> None:
    assert told(["no", "yes"], [5, 5]) == []
    assert told([str(label) for label in range(50)], [5] * 50) == []


def test_the_built_in_model_is_named_for_data_that_are_not_its_own() -> None:
    (notice,) = told(["no", "yes"], [5, 5], model={})
    assert "built-in model" in notice
    assert told(["no", "yes"], [5, 5], model={}, data={}) == []
    (notice,) = told(["no", "yes"], [5, 5], model={}, data={"train": __file__})
    assert "model.path" in notice


def test_rare_labels_are_told_of_by_split() -> None:
    (notice,) = told(["a", "b", "c"], [9, 4, 5], [5, 5, 0])
    expected = "fewer than 5 examples of a label: 4 of 'b' in train; 0 of 'c' in validation; 0 of 'c' in test"
    assert notice.startswith(expected)


def test_a_column_of_texts_as_labels_is_told_of_in_short_lines() -> None:
    labels = [f"review {number}\x1b " + 900 * "good " for number in range(51)]
    many, rare = told(labels, [1] * 51)
    assert many == "data.label: 'label' has 51 labels; if that is too many, name another column"
    assert "and 48 more in train" in rare
    shares = label_counts(split([1] * 51), labels)
    assert shares.endswith("2% (1) and 41 more")
    for line in (rare, shares):
        assert len(line) < 900
        assert line.isprintable()


def test_labels_that_differ_only_in_case_are_told_of() -> None:
    (notice,) = told(["Good", "bad", "good"], [5, 5, 5])
    assert notice == "labels that differ only in case count as different ones: 'Good' and 'good'"


@pytest.mark.parametrize(("limit", "why"), [(6, "the tokenizer of the model allows no more"), (None, "")])
def test_texts_are_counted_where_they_are_cut(
    limit: int | None,
    why: str,
    model_directories: dict[str, Path],
    data_files: dict[str, Path],
    tmp_path: Path,
) -> None:
    directory = shutil.copytree(model_directories["gpt2"], tmp_path / "model")
    if limit:
        file = directory / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": limit}))
    data = {**data_settings(data_files), "max_length": 7}
    said: list[str] = []
    values = {"model": {"path": str(directory)}, "data": data, "methods": {"head": {}}}
    train = prepare(Experiment.model_validate(values), said.append).data.train
    at = limit or 7
    assert train.longest == at
    count = (train.lengths == at).sum()
    (notice,) = (one for one in said if "are cut there" in one)
    assert notice.startswith(f"{count} of 64 training texts have {at} tokens or more")
    assert why in notice
    assert ("though data.max_length is 7" in notice) == bool(limit)


def test_a_split_asked_for_beside_a_file_is_not_left_out_silently(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.touch()
    asked = DataSettings(train=str(file), validation="validation", test="test")
    assert list(left_out(asked)) == [
        f"data.{name}: no such file: {name}; it is cut from {file} instead" for name in ("validation", "test")
    ]
    assert list(left_out(DataSettings(train=str(file)))) == [], "nobody asked for it"
    assert list(left_out(DataSettings(validation="validation", test="test"))) == []
