from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from tests.conftest import WORDS
from trainables.batches import make_batch
from trainables.data import RawData, RawSplit, load_data, read_data, stratified_order
from trainables.embedded_text import embedded_splits
from trainables.errors import InputError
from trainables.settings import DataSettings


def write(directory: Path, rows: int, suffix: str = "csv") -> str:
    frame = pd.DataFrame(
        {
            "sentence": [f'text "{i}" of it' for i in range(rows)],
            "label": [["bad", "good"][i % 3 > 0] for i in range(rows)],
        }
    )
    file = directory / f"{rows}.{suffix}"
    if suffix == "csv":
        frame.to_csv(file, index=False)
    elif suffix == "tsv":
        file.write_text("\n".join(["sentence\tlabel", *(f"{s}\t{label}" for s, label in frame.values)]))
    elif suffix == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_json(file, orient="records", lines=suffix == "jsonl")
    return str(file)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_each_kind_of_file_reads_the_same(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path, 90, suffix)
    raw = read_data(DataSettings(path=None, train=file, validation=None), seed=0)
    assert raw.labels == ("bad", "good")
    assert 'text "7" of it' in raw.train.texts + raw.validation.texts + raw.test.texts


def test_texts_of_a_pair_are_told_apart_as_the_models_tokenizer_does() -> None:
    rows = np.arange(3)
    ones, others = ["good film", "the", "bad"], ["a plot", "was very bad", ""]
    split = RawSplit(ones, others, rows % 2, rows, "made up")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *WORDS])})
    data, _ = load_data(RawData(split, split, split, ("no", "yes")), tokenizer, 64, with_segments=True)
    batch = make_batch(data.train, rows, data.pad_token_id)
    expected = tokenizer(ones, others, padding=True, return_tensors="pt")
    assert sorted(batch.inputs) == sorted(expected)
    for name, values in batch.inputs.items():
        assert values.equal(expected[name]), name
    parts = [part.inputs["token_type_ids"] for _, part in batch.parts(2)]
    assert torch.cat(parts).equal(expected["token_type_ids"])
    without, _ = load_data(RawData(split, split, split, ("no", "yes")), tokenizer, 64)
    assert without.fingerprint != data.fingerprint
    assert "token_type_ids" not in make_batch(without.train, rows, 0).inputs


def test_missing_splits_are_cut_from_train_before_the_sample(tmp_path: Path) -> None:
    file = write(tmp_path, 300)
    settings = DataSettings(path=None, train=file, validation=None, max_train_examples=60)
    raw = read_data(settings, seed=3)
    assert (len(raw.train.texts), len(raw.validation.texts), len(raw.test.texts)) == (60, 27, 30)
    parts = [set(split.texts) for split in (raw.train, raw.validation, raw.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert "cut from file 300.csv (10%, stratified, seed 3)" in raw.test.origin
    for split in (raw.train, raw.validation, raw.test):
        assert abs(split.labels.mean() - 2 / 3) < 0.05
    assert read_data(settings, seed=3).test.texts == raw.test.texts
    assert read_data(settings, seed=4).test.texts != raw.test.texts


def test_smaller_samples_are_part_of_larger_ones(tmp_path: Path) -> None:
    file = write(tmp_path, 300)

    def sample(count: int) -> set[str]:
        given = DataSettings(path=None, train=file, validation=None, max_train_examples=count)
        return set(read_data(given, seed=0).train.texts)

    assert sample(20) < sample(50) < sample(100)


def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawData:
    """A dataset saved as the hub's are: class labels, and a test split without labels."""
    dataset = Dataset.from_dict(
        {"sentence": [f"s {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    )
    dataset = dataset.cast_column("label", ClassLabel(names=["negative", "positive"]))
    unlabelled = Dataset.from_dict({"sentence": ["t"], "label": [-1]}, features=dataset.features)
    splits = DatasetDict({"train": dataset, "validation": dataset.select(range(10)), "test": unlabelled})
    monkeypatch.setattr("datasets.load_dataset", lambda path, config, split: splits[split])
    return read_data(DataSettings(path="glue", config="sst2", test="test"), seed=0)


def test_a_test_split_without_labels_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = hub(tmp_path, monkeypatch)
    assert raw.labels == ("negative", "positive")
    assert raw.test.origin.startswith("cut from train of glue/sst2")
    assert "also occur in train" in raw.validation.origin


def test_an_unreachable_hub_dataset_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"data\.path: split 'train' of nobody/nothing could not be loaded"):
        read_data(DataSettings(path="nobody/nothing"), seed=0)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=200),
    seed=st.integers(0, 9),
    share=st.floats(0.05, 1),
)
def test_every_prefix_of_the_stratified_order_keeps_the_shares(
    labels: list[int], seed: int, share: float
) -> None:
    array = np.array(labels)
    order = stratified_order(array, seed)
    assert sorted(order) == list(range(len(labels)))
    count = max(1, int(share * len(labels)))
    taken = array[order[:count]]
    for label in set(labels):
        expected = count * np.mean(array == label)
        assert abs(np.sum(taken == label) - expected) <= len(set(labels)) / 2 + 0.5


def test_the_splits_of_the_embedded_dataset_are_apart() -> None:
    splits = embedded_splits()
    texts = [text for split in splits.values() for text in split[0]]
    assert len(set(texts)) == len(texts)
    assert {name: len(split[0]) for name, split in splits.items()} == {
        "train": 2000,
        "validation": 600,
        "test": 1000,
    }


def test_real_sst2(shared: Path) -> None:
    directory = shared / "data" / "sst2"
    raw = read_data(
        DataSettings(
            path=None,
            train=str(directory / "train.tsv"),
            validation=str(directory / "dev.tsv"),
            test=str(directory / "test.tsv"),
            columns=["sentence", "label"],
            max_train_examples=1000,
        ),
        seed=0,
    )
    assert [len(split.texts) for split in (raw.train, raw.validation, raw.test)] == [1000, 872, 1821]


def lines(file: Path, *rows: str, header: str = "sentence,label") -> str:
    file.write_text("\n".join((header, *rows)))
    return str(file)


@pytest.mark.parametrize("path", ["embedded", None])
def test_a_file_to_train_on_is_not_judged_on_the_embedded_dataset(tmp_path: Path, path: str | None) -> None:
    """Though its splits are the defaults, and whatever its labels are called."""
    file = lines(
        tmp_path / "mine.csv", *(f"text {row},{['negative', 'positive'][row % 2]}" for row in range(60))
    )
    raw = read_data(DataSettings(path=path, train=file, test="test"), seed=0)
    assert "cut from" in raw.validation.origin
    assert "cut from" in raw.test.origin
    assert len(raw.train.texts) + len(raw.validation.texts) + len(raw.test.texts) == 60
    with pytest.raises(InputError, match=r"data\.test: no such file: tset"):
        read_data(DataSettings(path=path, train=file, test="tset"), seed=0)
    with pytest.raises(InputError, match=r"data\.train: no such file: nope\.csv"):
        read_data(DataSettings(path=path, train="nope.csv", text="text"), seed=0)


def test_sources_that_number_their_labels_differently_meet_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lines(tmp_path / "train.csv", *(f"text {row},{['yes', 'no'][row % 2]}" for row in range(20)))
    rows = {"sentence": ["a", "b", "c"], "label": [0, 1, 0]}
    for names, expected in ((["yes", "no"], [1, 0, 1]), (["no", "yes"], [0, 1, 0])):
        told = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=names))
        monkeypatch.setattr("datasets.load_dataset", lambda *_, told=told, **__: told)
        settings = DataSettings(path="hub/set", train=file, validation="validation")
        assert list(read_data(settings, seed=0).validation.labels) == expected
    told = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["yes", "maybe"]))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: told)
    with pytest.raises(InputError, match="label 'maybe', unknown in train, which has no, yes"):
        read_data(settings, seed=0)


def test_labels_that_look_almost_like_numbers_are_words(tmp_path: Path) -> None:
    names = ["--1", "10", "9", "-3", "9" * 5000]
    file = lines(tmp_path / "odd.csv", *(f"text {row},{names[row % 5]}" for row in range(50)))
    assert read_data(DataSettings(train=file), seed=0).labels == ("-3", "9", "10", "--1", "9" * 5000)


def test_equal_examples_are_not_cut_apart(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(50)]
    rows = [
        f"{text.upper() if turn else text} ,{number % 2}"
        for turn in range(4)
        for number, text in enumerate(texts)
    ]
    raw = read_data(
        DataSettings(path=None, validation=None, train=lines(tmp_path / "four.csv", *rows)), seed=0
    )
    known = [{text.lower() for text in split.texts} for split in (raw.train, raw.validation, raw.test)]
    assert not known[0] & known[1]
    assert not known[0] & known[2]
    assert not known[1] & known[2]
    assert [len(split.texts) for split in (raw.train, raw.validation, raw.test)] == [160, 20, 20]
    assert not raw.overlaps


def test_examples_that_occur_twice_are_counted_as_pairs_and_mentioned(tmp_path: Path) -> None:
    header = "one,other,label"
    train = lines(
        tmp_path / "a.csv", *(f"text {row},plot {row},{row % 2}" for row in range(40)), header=header
    )
    # The first texts are those of train; two pairs are.
    pairs = [f"text {row},{'Plot ' if row < 2 else 'other '}{row},{row % 2}" for row in range(20)]
    dev = lines(tmp_path / "b.csv", *pairs, header=header)
    settings = DataSettings(path=None, train=train, validation=dev, test=dev, text="one", text_pair="other")
    raw = read_data(settings, seed=0)
    assert raw.validation.origin == "file b.csv; 2 also occur in train"
    assert raw.test.origin == "file b.csv; 2 also occur in train; 20 also occur in validation"
    assert [overlap.partition(":")[0] for overlap in raw.overlaps] == [
        "2 of 20 validation examples also occur in train",
        "2 of 20 test examples also occur in train",
        "20 of 20 test examples also occur in validation",
    ]


@pytest.mark.parametrize("setting", [{"text": "foo"}, {"label": "foo"}, {"text_pair": "foo"}])
def test_columns_the_embedded_dataset_does_not_have_are_refused(setting: dict[str, str]) -> None:
    with pytest.raises(
        InputError, match=f"data.{next(iter(setting))}: the embedded dataset has no column 'foo'"
    ):
        read_data(DataSettings(**setting), seed=0)


def test_a_message_says_which_examples_miss_something(tmp_path: Path) -> None:
    file = lines(tmp_path / "gap.csv", "one,1", "", "two,0", "three,", " ,1", *["four,"] * 4, ",")
    with pytest.raises(InputError) as raised:
        read_data(DataSettings(train=file), seed=0)
    text, label = str(raised.value).split("; data.label: ")
    assert text == (
        "data.text: column 'sentence' of file gap.csv has no text for 2 of 9 examples: example 4 (' '), 9"
        " (''), counted from 1 without header and empty lines; complete or remove them"
    )
    assert label.startswith(
        "column 'label' of file gap.csv has no label for 6 of 9 examples: example 3 (''), 5"
    )
    assert "7 (''), 8 ('') and 1 more, counted" in label


def test_columns_that_are_not_there_are_named_at_once(tmp_path: Path) -> None:
    file = lines(tmp_path / "mine.csv", "one,1", "two,0")
    with pytest.raises(InputError, match=r"data\.text: .* no column 'x'; .*; data\.label: .* no column 'y'"):
        read_data(DataSettings(train=file, text="x", label="y"), seed=0)


@pytest.mark.parametrize(("row", "is_quoted"), [('"one\ntwo"\t1', True), ("one\t", False)])
def test_a_line_break_in_quotes_is_explained(tmp_path: Path, row: str, is_quoted: bool) -> None:
    file = lines(tmp_path / "mine.tsv", row, "two\t0", header="sentence\tlabel")
    with pytest.raises(InputError, match="has no label for 1 of") as raised:
        read_data(DataSettings(train=file), seed=0)
    assert ("In .tsv files quotes are part of the text" in str(raised.value)) == is_quoted


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "tsv"])
def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"latin.{suffix}"
    file.write_bytes('{"sentence": "café", "label": 1}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=rf"data\.train: .*latin\.{suffix} is not in UTF-8; convert it"):
        read_data(DataSettings(train=str(file)), seed=0)


def test_a_sample_too_small_for_all_labels_says_how_many_are_enough(tmp_path: Path) -> None:
    file = lines(tmp_path / "mine.csv", *(f"text {row},{int(row % 10 == 0)}" for row in range(100)))
    for key in ("max_train_examples", "max_validation_examples"):
        settings = DataSettings(train=file, validation=file)
        with pytest.raises(
            InputError, match=rf"data\.{key}: is 2, too few for a stratified sample with all 2 labels"
        ) as raised:
            read_data(settings.model_copy(update={key: 2}), seed=0)
        enough = int(str(raised.value).rpartition(" ")[2])
        raw = read_data(settings.model_copy(update={key: enough}), seed=0)
        for split in (raw.train, raw.validation):
            assert set(split.labels) == {0, 1}
        with pytest.raises(InputError):
            read_data(settings.model_copy(update={key: enough - 1}), seed=0)
