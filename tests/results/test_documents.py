"""What the documents say of the result set is so."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.dictionary import dictionary
from results.schema import TABLES

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = re.findall(r"^## (.*?)\n\n```python\n(.*?)```", (DOCS / "cookbook.md").read_text(), re.S | re.M)


def test_the_dictionary_is_what_the_schema_says() -> None:
    written = (DOCS / "result-set.md").read_text()
    assert written == dictionary(), "stale: python -m results.dictionary > docs/result-set.md"
    for schema in TABLES.values():
        for name in schema.names:
            assert f"| `{name}` |" in written


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_query_of_the_cookbook_runs(
    title: str, query: str, made_up: Callable[..., Any], tmp_path: Path
) -> None:
    made_up("demo").save(tmp_path / "runs" / "demo")
    done = subprocess.run(
        [sys.executable, "-c", query], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3, "nothing was found"


def test_the_cookbook_uses_all_three_readers() -> None:
    assert {library for _, query in QUERIES for library in re.findall(r"^import (\w+)", query, re.M)} == {
        *("pandas", "duckdb", "polars", "results")
    }
