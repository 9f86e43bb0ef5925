"""Tables of every kind, as somebody might send them: shown, or one message and exit status 2."""

from __future__ import annotations

import contextlib
import html.parser
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up import make_up

from results import load
from results.errors import ResultSetError
from results.report.__main__ import main as report
from results.schema import TABLES
from results.show import main as show


def fuzzed(share: float) -> settings:
    return settings(
        max_examples=int(share * settings().max_examples),  # 'make soak' has another profile
        deadline=30_000,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good result set, small."""
    made = make_up(accuracy={"lora": 0.8, "full": 0.7}, trials=2, seeds=2, examples=6, evaluations=2)
    directory = made.save(tmp_path_factory.mktemp("whole"))
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory two levels down, so that ``../../x`` would be seen."""
    directory = tmp_path / "runs" / "run"
    directory.mkdir(parents=True)
    yield directory
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "something was made outside"
    assert [path.name for path in directory.parent.iterdir()] == ["run"], "something was made outside"


def put(run: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (run / name).write_bytes(content)


def call(main: Callable[[list[str]], int], *arguments: str) -> tuple[int, str]:
    """Call a command, check that it says what is wrong in one line, and return its status and output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    assert status in (0, 2)
    if status == 2:
        [line] = err.getvalue().removesuffix("\n").split("\n")
        assert ".parquet: " in line
        assert line.isprintable()
    return status, out.getvalue()


def look(run: Path, form: str) -> None:
    """Show a result set, and load it."""
    _, out = call(show, str(run), "--format", form)
    assert "\x1b" not in out, "the terminal would be written to by the file"
    with contextlib.suppress(ResultSetError):
        for name, frame in vars(load(run)).items():
            assert list(frame)[: len(TABLES[name])] == TABLES[name].names


forms = st.sampled_from(["csv", "csv", "json", "markdown", "table"])


texts = st.text(max_size=12) | st.sampled_from(
    [
        *("", "lora", "search", "confirm", "completed", "lora-000", "<script>alert(1)</script>", "</script>"),
        *("../../x", "/etc/x", "\x1b[2J", "a\nb", "|", "[/b]", "[link=x]y", "\x00", "NaN", "x" * 3000),
        *("{}", "[]", "null", "[" * 3000, '{"experiment": {}}', '{"experiment": null}'),
        *('{"experiment": {"search": {"trials": {}}, "confirm": []}}', '{"experiment": {"budget": [1]}}'),
    ]
)
numbers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2, -1]) | st.integers(0, 3)
floats = st.floats() | st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e308, float("nan"), float("inf")])


def of_kind(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind):
        return st.none() | texts
    if pa.types.is_integer(kind):
        return st.none() | numbers
    if pa.types.is_floating(kind):
        return st.none() | floats
    if pa.types.is_list(kind):
        return st.none() | st.lists(floats, max_size=3)
    return st.none() | st.datetimes(
        min_value=pd.Timestamp("1700-01-01"), max_value=pd.Timestamp("2200-01-01")
    )


@st.composite
def changed_cells(draw: st.DrawFn) -> list[tuple[str, int, str, Any]]:
    """Table, row, column and value of some cells."""
    changes = []
    for _ in range(draw(st.integers(1, 6))):
        table = draw(st.sampled_from(list(TABLES)))
        field = draw(st.sampled_from(list(TABLES[table])))
        changes.append((table, draw(st.integers(0, 50)), field.name, draw(of_kind(field.type))))
    return changes


def change(files: dict[str, bytes], changes: list[tuple[str, int, str, Any]]) -> dict[str, bytes]:
    tables = {name: pq.read_table(io.BytesIO(files[f"{name}.parquet"])) for name in TABLES}
    for name, row, column, value in changes:
        table = tables[name]
        if not table.num_rows:
            continue
        rows = table[column].to_pylist()
        if row == 50:
            rows = [value] * len(rows)
        else:
            rows[row % len(rows)] = value
        tables[name] = table.set_column(
            table.column_names.index(column), table.field(column), pa.array(rows, table.field(column).type)
        )
    return {f"{name}.parquet": parquet(table) for name, table in tables.items()}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@fuzzed(1)
@given(changes=changed_cells(), form=forms)
def test_cells_of_every_kind(
    whole: dict[str, bytes], run: Path, changes: list[tuple[str, int, str, Any]], form: str
) -> None:
    put(run, change(whole, changes))
    look(run, form)


@fuzzed(3)
@given(
    table=st.sampled_from(list(TABLES)),
    at=st.integers(0, 20_000) | st.integers(-600, -1),
    cut=st.integers(0, 40) | st.just(10**6),
    piece=st.binary(max_size=6) | st.sampled_from([b"\xff" * 8, b"PAR1", b"\x00" * 40]),
)
@example(table="trials", at=0, cut=10**6, piece=b"")
@example(table="trials", at=-8, cut=4, piece=b"\xff\xff\xff\x7f")
def test_bytes_of_every_kind(
    whole: dict[str, bytes], run: Path, table: str, at: int, cut: int, piece: bytes
) -> None:
    content = whole[f"{table}.parquet"]
    at %= len(content)
    put(run, {**whole, f"{table}.parquet": content[:at] + piece + content[at + cut :]})
    with contextlib.suppress(ResultSetError):
        load(run)
    call(show, str(run), "--format", "csv")


KINDS = [
    *(pa.string(), pa.int8(), pa.float64(), pa.bool_(), pa.null(), pa.binary(), pa.date32()),
    *(pa.list_(pa.string()), pa.struct({"a": pa.int8()}), pa.timestamp("s"), pa.decimal128(5, 1)),
]


@fuzzed(1.5)
@given(
    table=st.sampled_from(list(TABLES)),
    dropped=st.sets(st.integers(0, 60), max_size=8),
    retyped=st.dictionaries(st.integers(0, 60), st.sampled_from(KINDS), max_size=3),
    added=st.dictionaries(
        texts | st.sampled_from(["hp_", "hp_x", "hp_rank", "experiment"]), st.sampled_from(KINDS)
    ),
    version=st.none()
    | st.binary(max_size=4)
    | st.sampled_from([b"0", b"1", b"2", b"99999999999999999999", b"1.0"]),
    metadata=st.dictionaries(st.binary(max_size=8), st.binary(max_size=8), max_size=3),
    form=forms,
)
@example("trials", set(range(61)), {}, {}, None, {}, "csv")
@example("trials", set(), {}, {}, b"1", {b"pandas": b"{]"}, "csv")
@example("trials", set(), {}, {"hp_rank": pa.struct({"a": pa.int8()})}, b"1", {}, "csv")
def test_columns_of_every_kind(
    whole: dict[str, bytes],
    run: Path,
    table: str,
    dropped: set[int],
    retyped: dict[int, pa.DataType],
    added: dict[str, pa.DataType],
    version: bytes | None,
    metadata: dict[bytes, bytes],
    form: str,
) -> None:
    found = pq.read_table(io.BytesIO(whole[f"{table}.parquet"]))
    columns = []
    for index, name in enumerate(found.column_names):
        if index in dropped:
            continue
        values = found[name]
        if index in retyped:
            try:
                values = values.cast(retyped[index])
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                values = pa.nulls(found.num_rows, retyped[index])
        columns.append((name, values))
    columns += [(name, pa.nulls(found.num_rows, kind)) for name, kind in added.items()]
    schema = pa.schema([(name, values.type) for name, values in columns], metadata=metadata)
    if version is not None:
        schema = schema.with_metadata({**metadata, b"schema_version": version})
    made = pa.Table.from_arrays([values for _, values in columns], schema=schema)
    put(run, {**whole, f"{table}.parquet": parquet(made)})
    look(run, form)


class Scripts(html.parser.HTMLParser):
    """What a browser would run of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


EVIL = "<script>ran()</script><img src=x onerror=ran()>\"' onload=ran() </script><!--"


def scripts(page: Path) -> tuple[list[str], set[str]]:
    parser = Scripts()
    parser.feed(page.read_text())
    return parser.tags, set(parser.attributes)


def check_page(page: Path) -> None:
    found, attributes = scripts(page)
    assert not [name for name in attributes if name.startswith("on")]
    assert not {"img", "iframe", "object", "embed"} & set(found)


@fuzzed(0.1)
@given(changes=changed_cells())
def test_a_report_on_anything_runs_nothing_of_it(
    whole: dict[str, bytes], run: Path, changes: list[tuple[str, int, str, Any]]
) -> None:
    put(run, change(whole, changes))
    status, _ = call(report, str(run))
    if status == 0:
        check_page(run / "report" / "index.html")


def test_html_is_text_wherever_it_stands(run: Path) -> None:
    made = make_up(EVIL, {EVIL: 0.8, f"{EVIL}2": 0.7}, trials=3, seeds=2, examples=6)
    texts = [field.name for field in TABLES["trials"] if pa.types.is_string(field.type)]
    for row in made.trials:
        row |= {name: EVIL for name in texts if name not in row}
        row |= {"hp_target": EVIL, "node": EVIL, "device": EVIL, "dataset": EVIL, "base_model": EVIL}
        row |= {name: json.dumps({EVIL: EVIL}) for name in ("splits", "versions")}
        row["settings"] = json.dumps({"experiment": {"name": EVIL, EVIL: EVIL}})
    made.trials[0] |= {"status": "failed", "validation_accuracy": None}
    for row in made.predictions:
        row |= {"label": EVIL}
    made.save(run)
    assert call(report, str(run))[0] == 0
    page = run / "report" / "index.html"
    assert "onerror" in page.read_text(), "the text is shown"
    check_page(page)
    assert sorted(path.suffix for path in run.iterdir()) == ["", *[".parquet"] * 4]
