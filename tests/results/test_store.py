from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results import load, store
from results.schema import TABLES
from results.store import (
    Snapshots,
    TrialRecord,
    drop_checkpoint,
    read_journal,
    remove_record,
    replace_file,
    write_record,
)


def record(trial_id: str = "lora-000", number: int = 0, **columns: Any) -> TrialRecord:
    identity = {"experiment": "e", "trial_id": trial_id, "method": "lora", "phase": "search"}
    return TrialRecord(
        trial={**identity, "trial_number": number, **columns},
        metrics=[{**identity, "evaluation": i, "validation_accuracy": i / 10} for i in (1, 2)],
    )


def test_importing_results_loads_neither_ray_nor_torch_nor_pandas() -> None:
    code = "import results, sys; print([m for m in ('ray', 'torch', 'pandas') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_writing_a_trial_twice_leaves_one_row(tmp_path: Path) -> None:
    write_record(tmp_path, record(status="running"))
    write_record(tmp_path, record(status="completed"))
    Snapshots(tmp_path).write()
    assert list(load(tmp_path).trials.status) == ["completed"]
    assert len(load(tmp_path).metrics) == 2


def test_trials_of_one_turn_are_in_the_order_of_their_methods(tmp_path: Path) -> None:
    for started_at, method in enumerate(["dora", "unknown", "lora", "full"]):
        for number in (0, 1):
            when = f"2026-01-0{started_at + 1}T00:00:00+00:00"
            write_record(tmp_path, record(f"{method}-{number}", number, method=method, started_at=when))
    Snapshots(tmp_path, ["full", "lora", "dora"]).write()
    order = ["full", "lora", "dora", "unknown"]
    expected = [f"{method}-{number}" for number in (0, 1) for method in order]
    assert list(load(tmp_path).trials.trial_id) == expected
    Snapshots(tmp_path).write()
    assert list(load(tmp_path).trials.method[:4]) == ["dora", "unknown", "lora", "full"]


def test_a_checkpoint_that_is_dropped_changes_nothing_else(tmp_path: Path) -> None:
    made = record(started_at=datetime(2026, 1, 1, tzinfo=UTC), git_revision="old", settings="{}")
    identity = {"experiment": "e", "trial_id": "lora-000", "method": "lora"}
    of_checkpoint = {**identity, "evaluation": 2, "path": "checkpoints/lora-000", "bytes": 1}
    write_record(tmp_path, replace(made, checkpoints=[of_checkpoint]))
    [before] = read_journal(tmp_path)
    assert before.checkpoints
    drop_checkpoint(tmp_path, "lora-000")
    assert read_journal(tmp_path) == [replace(before, checkpoints=[])]


def test_predictions_go_with_their_trials(tmp_path: Path) -> None:
    of_trial = {"experiment": "e", "trial_id": "lora-000", "method": "lora", "phase": "search"}
    prediction = {
        "seed": 0,
        "example_id": 1,
        "label": "a",
        "prediction": "b",
        "loss": 1.0,
        "logits": [0.0, 1.0],
    }
    judged = replace(record(), predictions=[{**of_trial, **prediction}])
    write_record(tmp_path, judged)
    Snapshots(tmp_path).write()
    assert len(load(tmp_path).predictions) == 1
    remove_record(tmp_path, "lora-000")
    Snapshots(tmp_path).write()
    assert not len(load(tmp_path).trials)
    assert not len(load(tmp_path).predictions)


def test_missing_and_non_finite_values_are_nulls(tmp_path: Path) -> None:
    write_record(tmp_path, record(validation_loss=float("nan"), train_loss=float("inf")))
    Snapshots(tmp_path).write()
    row = load(tmp_path).trials.iloc[0]
    assert row[["validation_loss", "train_loss", "test_accuracy", "error"]].isna().all()


def test_hyperparameters_are_columns_of_their_own_type(tmp_path: Path) -> None:
    write_record(tmp_path, record("a", 0, hp_rank=8, hp_alpha=16, hp_target_modules="c_attn,c_proj"))
    write_record(tmp_path, record("b", 1, hp_alpha=0.5))
    Snapshots(tmp_path).write()
    table = pd.read_parquet(tmp_path / "trials.parquet", dtype_backend="numpy_nullable")
    assert str(table.hp_rank.dtype) == "Int64"
    assert list(table.hp_alpha) == [16.0, 0.5]
    assert table.hp_target_modules[0] == "c_attn,c_proj"
    assert table.hp_rank.isna().tolist() == [False, True]


def test_unknown_columns_and_strange_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown column 'accuracy'"):
        write_record(tmp_path, record(accuracy=1.0))
    with pytest.raises(ValueError, match="trial_id"):
        write_record(tmp_path, record("../lora"))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_table(tmp_path: Path) -> None:
    for number in range(20):
        write_record(tmp_path, record(f"t-{number}", number, error="x" * 5000))
    Snapshots(tmp_path).write()
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            Snapshots(tmp_path).write()

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        counts = {len(pd.read_parquet(tmp_path / "trials.parquet")) for _ in range(60)}
    finally:
        stop.set()
        writer.join()
    assert counts == {20}
    assert not list(tmp_path.glob(".*tmp"))


def test_load_takes_directories_of_runs_and_globs(tmp_path: Path) -> None:
    for name, columns in (("one", {"hp_rank": 8}), ("two", {"hp_beta": 0.5})):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, record(experiment=name, **columns))
        Snapshots(tmp_path / name).write()
    for path in (tmp_path, f"{tmp_path}/*", [tmp_path / "one", tmp_path / "two"]):
        loaded = load(path)
        assert len(loaded.trials) == 2
        assert {"hp_rank", "hp_beta"} <= set(loaded.trials)
        assert list(loaded.predictions) == TABLES["predictions"].names
    with pytest.raises(FileNotFoundError, match=r"no result set.*trials\.parquet"):
        load(tmp_path / "three")


@settings(max_examples=60, deadline=None)
@given(
    error=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    seed=st.integers(0, 2**63 - 1),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    moment=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)),
)
def test_what_is_written_is_read(
    error: str | None, seed: int, loss: float | None, moment: datetime | None
) -> None:
    started = moment.replace(tzinfo=UTC) if moment else None
    with TemporaryDirectory() as directory:
        write_record(Path(directory), record(error=error, seed=seed, train_loss=loss, started_at=started))
        Snapshots(Path(directory)).write()
        row = pd.read_parquet(f"{directory}/trials.parquet", dtype_backend="pyarrow").iloc[0]
    assert row.seed == seed
    assert (error is None and pd.isna(row.error)) or row.error == error
    assert (loss is None and pd.isna(row.train_loss)) or row.train_loss == loss
    assert (started is None and pd.isna(row.started_at)) or row.started_at == started


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # which trial is written
            st.sampled_from(["running", "completed"]),
            st.sampled_from([{}, {"hp_rank": 8}, {"hp_rank": 0.5}, {"hp_target": "c_attn"}]),
            st.booleans(),  # whether the tables are made after it
        ),
        min_size=1,
        max_size=8,
    )
)
def test_tables_made_again_and_again_are_those_made_anew(
    writes: list[tuple[int, str, dict[str, Any], bool]],
) -> None:
    with TemporaryDirectory() as directory:
        kept, anew = Path(directory) / "kept", Path(directory) / "anew"
        kept.mkdir()
        snapshots = Snapshots(kept)
        for number, status, hyperparameters, is_read in writes:
            write_record(kept, record(f"t-{number}", 3 - number, status=status, **hyperparameters))
            snapshots.changed(f"t-{number}")
            if is_read:
                snapshots.write()
        snapshots.write()
        shutil.copytree(kept, anew, ignore=shutil.ignore_patterns("*.parquet"))
        Snapshots(anew).write()
        for file in anew.glob("*.parquet"):
            assert (kept / file.name).read_bytes() == file.read_bytes()
        assert len(list(anew.glob("*.parquet"))) == len(list(kept.glob("*.parquet"))) == 3


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    temporary = tmp_path / f".page.{os.getpid()}.tmp"
    for link in (tmp_path / "page", temporary):
        link.symlink_to(tmp_path / "mine")
    replace_file(tmp_path / "page", b"new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "page").read_text() == "new"


def test_the_table_of_trials_is_never_ahead_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it first finds in the others all that it speaks of."""
    written = []
    monkeypatch.setattr(store, "replace_file", lambda file, content: written.append(file.name))
    Snapshots(tmp_path).write()
    assert written == ["metrics.parquet", "checkpoints.parquet", "trials.parquet"]
