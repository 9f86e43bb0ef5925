"""Experiment files and --set of every kind: one line for each problem, exit status 2, nothing made."""

from __future__ import annotations

import contextlib
import io
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.experiment import Experiment
from orchestrator.run import main

fuzzed = settings(
    max_examples=5 * settings().max_examples,  # 'make soak' has another profile
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SECTIONS = {
    name: list(getattr(field.annotation, "model_fields", {}))
    for name, field in Experiment.model_fields.items()
}
HYPERPARAMETERS = ["kind", "rank", "alpha", "dropout", "target_modules", "learning_rate", "epochs", "x"]
GUARD = [
    # Whatever else is right, there is no data and no model to run with: nothing is loaded or fetched, and Ray
    # stays out of it.
    *("--set=data.train=./absent.csv", "--set=model.path=./absent"),
    *("--set=resources.auto=false", "--set=resources.memory_per_trial=null", "--set=logging={}"),
]

texts = st.text(max_size=20) | st.sampled_from(
    [
        *(
            "",
            " ",
            "null",
            "auto",
            "embedded",
            "lora",
            "../../x",
            "/etc/passwd",
            "~nobody-here/x",
            "a" * 5000,
        ),
        *("1e-5", "nan", "inf", "1_0", "\x00", "\x1b[2J", "\n", "\u2028", "\ud7ff", "%s", "{}", "$HOME"),
    ]
)
numbers = (
    st.integers()
    | st.integers(min_value=10**300, max_value=10**420)
    | st.floats()
    | st.sampled_from([0, -1, 1, 10**30, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")])
)
scalars = st.none() | st.booleans() | numbers | texts | st.dates() | st.binary(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
ranges = st.fixed_dictionaries(
    {"low": numbers, "high": numbers}, optional={"log": st.booleans() | texts, "step": numbers}
)
entries = values | st.dictionaries(st.sampled_from(HYPERPARAMETERS), values | ranges | numbers, max_size=4)


def section(name: str) -> st.SearchStrategy[Any]:
    if name == "methods":
        return values | st.dictionaries(st.sampled_from(["lora", "full", "a"]) | texts, entries, max_size=4)
    if not SECTIONS[name]:
        return values
    return values | st.dictionaries(st.sampled_from(SECTIONS[name]), values | numbers, max_size=4)


documents = st.fixed_dictionaries({}, optional={name: section(name) for name in SECTIONS})

GOOD = b"""\
name: good
model: {path: ./model}
data: {path: null, train: train.tsv, columns: [sentence, label]}
methods: {full: {}, lora: {rank: [2, 4], learning_rate: {low: 1e-5, high: 1e-3}}}
search:
  trials: 4
"""
PIECES = [
    *(b"\t", b"\x00", b"\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\x1b", b"\r", b"\x85", b"&a ", b"*a"),
    *(b"- ", b": ", b"? ", b"<<: *a", b"<<: [*a, *a]", b"---\n", b"...\n", b"%YAML 9.9\n", b"| ", b">\n"),
    *(b"!!python/object/apply:os.system [touch ran]", b"!!int ''", b"!!bool x", b"!!timestamp x", b"!!set "),
    *(
        b"!!binary \xc3\xa9",
        b"!!omap ",
        b"!!pairs ",
        b"!x ",
        b"[" * 400,
        b"{a: " * 400,
        b"9" * 5000,
        b"2001-99-99",
    ),
    *(
        b"'",
        b'"',
        b"}",
        b"]",
        b",",
        b"#",
        b"@",
        b"`",
        b"name: x\n",
        b"1:99:99",
        b"0x",
        b".nan",
        b"=\n",
        b"\n",
    ),
]


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A good file in which bytes were cut out and others put in."""
    content = draw(st.sampled_from([GOOD, b""]) | st.binary(max_size=60))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        cut = draw(st.integers(0, 12))
        content = content[:at] + draw(st.sampled_from(PIECES)) + content[at + cut :]
    return content


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory two levels down, so that ``../../x`` would be seen."""
    place = tmp_path / "one" / "two"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    yield place
    found = sorted(path.name for path in tmp_path.rglob("*"))
    assert found == ["fuzzed.yaml", "one", "two"], "something was made"


def refuse(*arguments: str) -> list[str]:
    """Run the command, check that it refuses in one line per problem, and return them."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    lines = said.getvalue().removesuffix("\n").split("\n")
    assert status == 2, said.getvalue()
    for line in lines:
        assert line.startswith(("fuzzed.yaml:", "--set ", "--methods: ")), line
        assert line.isprintable(), "a terminal would be written to by the file"
        assert len(line) < 2000
    return lines


def write(content: bytes) -> str:
    Path("fuzzed.yaml").write_bytes(content)
    return "fuzzed.yaml"


LAUGHS = "a: &a [x,x]\n" + "".join(
    f"{after}: &{after} [*{before},*{before},*{before},*{before},*{before},*{before},*{before},*{before}]\n"
    for before, after in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [*{before}, *{before}, *{before}, *{before}]}}\n"
    for before, after in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False)
)


@fuzzed
@given(values=documents)
@example(values={"methods": {"lora": {"rank": 10**400}}})
@example(values={"methods": {"a" * 5000: {"kind": "lora"}}})
@example(values={"storage": "~nobody-here/x"})
@example(values={"storage": "x" * 5000})
@example(values={"storage": "\x00"})
def test_values_of_every_kind(workplace: Path, values: dict[str, Any]) -> None:
    refuse(write(yaml.safe_dump(values, allow_unicode=True).encode()), *GUARD)


@fuzzed
@given(content=broken_files())
@example(content=LAUGHS.encode())
@example(content=b"seed: &a [x]\n" + LAUGHS.replace("a: &a [x,x]", "a: [*a]").encode())
@example(content=MERGES.encode())
@example(content=b"seed: " + b"[" * 300 + b"]" * 300)
@example(content=b"methods: {lora: {rank: " + b"[" * 90 + b"]" * 90 + b"}}")
@example(content=b"name: " + b"x" * 10_000_000)
@example(content="name: groß\n".encode("latin-1"))
@example(content="name: a\n".encode("utf-16"))
@example(content=b"a: &a [*a]")
@example(content=b'data: {columns: [a, "\\uD800"]}')
def test_files_of_every_kind(workplace: Path, content: bytes) -> None:
    refuse(write(content), *GUARD)
    assert not os.path.exists("ran")


keys = st.lists(
    st.sampled_from([*SECTIONS, *HYPERPARAMETERS, *(key for keys in SECTIONS.values() for key in keys)])
    | texts,
    max_size=4,
).map(".".join)


@fuzzed
@given(
    overrides=st.lists(
        st.tuples(keys, st.sampled_from(["=", "=", "=", ""]), values.map(str) | texts).map("".join),
        max_size=3,
    ),
    name=st.none() | texts,
    methods=st.none() | texts,
)
@example(overrides=["methods.lora.rank=" + "[" * 1000], name=None, methods=None)
@example(overrides=["storage=\x00"], name=None, methods=None)
@example(overrides=["a=!!python/object/apply:os.system [touch ran]"], name=None, methods=None)
@example(overrides=[], name="../../x", methods=None)
@example(overrides=[], name="/tmp/x", methods=None)
@example(overrides=[], name=None, methods="\x1b[2J,lora")
def test_settings_of_every_kind(
    workplace: Path, overrides: list[str], name: str | None, methods: str | None
) -> None:
    arguments = [f"--set={override}" for override in overrides]
    arguments += [f"--name={name}"] if name is not None else []
    arguments += [f"--methods={methods}"] if methods else []
    refuse(write(GOOD), *arguments, *GUARD)
    assert not os.path.exists("ran")
