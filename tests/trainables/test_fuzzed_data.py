"""Data files of every kind: examples, or one error that names the key."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainables.data import RawData, load_data, read_data
from trainables.errors import InputError
from trainables.settings import DataSettings

fuzzed = settings(
    max_examples=4 * settings().max_examples,  # 'make soak' has another profile
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SMALL = {"validation": None, "test": None, "validation_fraction": 0.3, "test_fraction": 0.3}


@pytest.fixture(scope="module")
def tokenizer(model_directories: dict[str, Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_directories["gpt2"])


def read(file: Path, tokenizer: PreTrainedTokenizerBase, **others: Any) -> RawData | None:
    """Read a file as the experiment's data; check that what is wrong with it is said in one line."""
    chosen = DataSettings.model_validate({"path": None, "train": str(file), **SMALL, **others})
    try:
        raw = read_data(chosen, seed=0)
    except InputError as error:
        key, _, message = str(error).partition(": ")
        if not (key.startswith("data.") and message):
            raise
        return None
    for split in (raw.train, raw.validation, raw.test):
        assert len(split.texts) == len(split.labels) > 0
        assert all(isinstance(text, str) and text.strip() for text in split.texts)
        assert 0 <= split.labels.min() <= split.labels.max() < len(raw.labels)
    assert all(label.strip() for label in raw.labels)
    assert len(set(raw.labels)) == len(raw.labels) >= 2
    data, _ = load_data(raw, tokenizer, chosen.max_length)
    assert data.train.offsets[-1] == len(data.train.tokens)
    return raw


GOOD = b"sentence\tlabel\n" + b"good film\t1\nbad film\t0\n" * 6
PIECES = [
    *(
        b"\x00",
        b"\xff",
        b"\xc3\x28",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\x85",
        b"\x1b[2J",
        b"\xed\xa0\x80",
    ),
    *(b"\t", b",", b'"', b"'", b"\n", b"\n\n", b"\t\t\t", b'""', b'","', b"\\", b"nan", b"NA", b"1e400"),
    *(b"9" * 400, b"-1", b"1.0", b"1", b"true", b"null", b"label\t", b"sentence,", b" ", b"\xc2\xa0"),
    *(
        "٣".encode(),
        "²".encode(),
        b"{",
        b"}",
        b"[",
        b"]",
        b'{"sentence": ',
        b"[[[[" * 300,
        b'"' + b"x" * 9000,
    ),
]
ENDINGS = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A good file in which bytes were cut out and others put in."""
    content = draw(st.sampled_from([GOOD, GOOD.replace(b"\t", b","), b""]) | st.binary(max_size=80))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.sampled_from(PIECES)) + content[at + draw(st.integers(0, 8)) :]
    return content.decode("latin-1").encode(draw(st.sampled_from(["latin-1", "utf-16", "utf-8"])))


@fuzzed
@given(content=broken_files(), ending=st.sampled_from(ENDINGS), has_header=st.booleans())
@example(content=GOOD + b"x" * 10_000_000 + b"\t1\n", ending=".tsv", has_header=True)
@example(content=b"x" * 10_000_000, ending=".csv", has_header=True)
@example(content=GOOD.replace(b"\t", b",") + b'"' + b"x" * 10_000_000, ending=".csv", has_header=True)
@example(content=b"[" * 10_000_000, ending=".json", has_header=True)
@example(content=b"", ending=".csv", has_header=True)
@example(content=b"\n", ending=".tsv", has_header=False)
@example(content=b"sentence\tlabel\tlabel\n" + b"a\t1\t0\n" * 9, ending=".tsv", has_header=True)
@example(content=b"sentence\tsentence\n" + b"a\t1\n" * 9, ending=".tsv", has_header=True)
@example(content=b"\t\n" + b"a\t1\n" * 9, ending=".tsv", has_header=True)
@example(content=b"sentence\tlabel\n" + "a\t²\nb\t٣\n".encode() * 9, ending=".tsv", has_header=True)
def test_files_of_every_kind(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, content: bytes, ending: str, has_header: bool
) -> None:
    file = tmp_path / f"fuzzed{ending}"
    file.write_bytes(content)
    # Other names than the header's, which would be refused.
    read(file, tokenizer, **({} if has_header else {"columns": ["text", "label"], "text": "text"}))
    assert list(tmp_path.iterdir()) == [file]
    file.unlink()


cells = (
    st.text(max_size=8)
    | st.sampled_from(
        ["a", "b", "1", "01", "1.0", " 1", "-1", "nan", "NaN", "", " ", "²", "1e3", "0x1", "\x00"]
    )
    | st.integers(-2, 2)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
)
texts = st.sampled_from(["good film", "bad film", "a"]) | cells
labels = st.sampled_from([0, 1, "0", "1"]) | cells
nested = cells | st.lists(cells, max_size=2) | st.dictionaries(st.text(max_size=3), cells, max_size=2)
tables = st.lists(st.tuples(texts, labels), max_size=14).map(lambda rows: rows * 2)


@fuzzed
@given(rows=tables, separator=st.sampled_from([",", "\t"]), quoting=st.sampled_from([0, 1]))
def test_tables_of_text(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[tuple[Any, Any]],
    separator: str,
    quoting: Any,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting)
    writer.writerows([("sentence", "label"), *rows])
    file = tmp_path / ("fuzzed.csv" if separator == "," else "fuzzed.tsv")
    file.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    read(file, tokenizer)


objects = st.fixed_dictionaries(
    {}, optional={"sentence": texts | nested, "label": labels | nested, "x": nested, "": cells}
)


@fuzzed
@given(rows=st.lists(objects | nested, max_size=14).map(lambda rows: rows * 2), lines=st.booleans())
@example(rows=[{"sentence": "a", "label": 10**400}, {"sentence": "b", "label": 1}] * 9, lines=True)
@example(rows=[{"sentence": "a", "label": True}, {"sentence": "b", "label": False}] * 9, lines=True)
@example(rows=[{"sentence": "a", "label": "1"}, {"sentence": "b", "label": 0}] * 9, lines=True)
def test_json_of_mixed_types(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[Any], lines: bool
) -> None:
    file = tmp_path / ("fuzzed.jsonl" if lines else "fuzzed.json")
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    read(file, tokenizer)


def column(kind: pa.DataType, rows: int) -> pa.Array:
    """A column of a type, of values that it can have."""
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_map(kind):
        return pa.nulls(rows, kind)
    return pa.array([str(i % 2) for i in range(rows)]).cast(pa.int64()).cast(kind)


KINDS = [
    *(pa.string(), pa.large_string(), pa.int8(), pa.uint64(), pa.float32(), pa.float64()),
    *(pa.date32(), pa.timestamp("ns"), pa.timestamp("us", tz="UTC"), pa.time64("us"), pa.duration("s")),
    *(pa.decimal128(20, 2), pa.bool_(), pa.null(), pa.list_(pa.string()), pa.struct({"a": pa.int8()})),
    pa.map_(pa.string(), pa.string()),
]


def make(kind: pa.DataType, rows: int) -> pa.Array:
    try:
        return column(kind, rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None] * rows, kind)


@fuzzed
@given(
    text=st.sampled_from(KINDS),
    label=st.sampled_from(KINDS),
    rows=st.sampled_from([0, 1, 12]),
    encoded=st.booleans(),
    damage=st.none() | st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=4)),
)
def test_parquet_of_odd_types(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    text: pa.DataType,
    label: pa.DataType,
    rows: int,
    encoded: bool,
    damage: tuple[int, bytes] | None,
) -> None:
    table = pa.table({"sentence": make(text, rows), "label": make(label, rows)})
    if encoded and not pa.types.is_nested(label) and not pa.types.is_null(label):
        table = table.set_column(1, "label", table["label"].dictionary_encode())
    file = tmp_path / "fuzzed.parquet"
    pq.write_table(table, file)
    if damage:
        content = bytearray(file.read_bytes())
        at = damage[0] % len(content)
        content[at : at + len(damage[1])] = damage[1]
        file.write_bytes(bytes(content))
    read(file, tokenizer)


counts = st.integers(1, 20) | st.sampled_from([2**31, 2**63, 2**64, 10**30])
lengths = st.integers(1, 20) | st.just(1_000_000)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


@fuzzed
@given(
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "max_length": lengths,
            "max_train_examples": counts,
            "max_validation_examples": counts,
            "validation_fraction": fractions,
            "test_fraction": fractions,
            "text": st.sampled_from(["sentence", "label", "x"]),
            "text_pair": st.sampled_from(["sentence", "label", "x"]),
        },
    )
)
def test_settings_of_every_size(
    data_files: dict[str, Path], tokenizer: PreTrainedTokenizerBase, chosen: dict[str, Any]
) -> None:
    read(data_files["train"], tokenizer, columns=["sentence", "label"], **chosen)


def test_labels_that_look_like_numbers_keep_their_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    file = tmp_path / "train.csv"
    pd.DataFrame({"sentence": list("abcdefghijklmnop"), "label": ["01", "1"] * 8}).to_csv(file, index=False)
    raw = read(file, tokenizer)
    assert raw is not None
    assert raw.labels == ("01", "1")


@pytest.mark.parametrize("path", ["../../x.csv", "/nowhere/x.csv", "~nobody-here/x", "x" * 300, "a\0b", "."])
def test_paths_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="train"):
        read_data(DataSettings.model_validate({"path": None, "train": path}), seed=0)
    assert not list(tmp_path.iterdir())
