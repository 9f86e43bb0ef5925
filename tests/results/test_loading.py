"""Old, new and damaged tables."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import make_up

from results import load
from results.errors import ResultSetError
from results.report.__main__ import main as report
from results.schema import SCHEMA_VERSION, TABLES
from results.show import main as show


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = make_up(examples=20).save(tmp_path / "run")
    return directory


def rewrite(file: Path, version: int | None, drop: list[str]) -> None:
    table = pq.read_table(file).drop_columns(drop)
    metadata = {} if version is None else {"schema_version": str(version)}
    pq.write_table(table.replace_schema_metadata(metadata), file)


@pytest.mark.parametrize("version", [None, 0])
def test_columns_that_an_older_version_did_not_write_are_null(run: Path, version: int | None) -> None:
    rewrite(run / "trials.parquet", version, ["test_seconds", "node"])
    trials = load(run).trials
    assert trials[["test_seconds", "node"]].isna().all(axis=None)
    assert [name for name in trials if not name.startswith("hp_")] == TABLES["trials"].names
    assert trials.hp_learning_rate.notna().all()


def test_old_and_new_runs_load_together(run: Path, tmp_path: Path) -> None:
    make_up("new").save(tmp_path / "new")
    rewrite(run / "trials.parquet", 0, ["model_bytes"])
    trials = load(tmp_path).trials
    assert trials.model_bytes.isna().groupby(trials.experiment).all().to_dict() == {
        "made-up": True,
        "new": False,
    }


def test_two_runs_of_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copies" / run.name)
    with pytest.raises(ResultSetError, match="both are runs named made-up") as said:
        load([run, copy])
    assert str(run) in str(said.value)
    assert str(copy) in str(said.value)
    assert len(load([run, run, run.parent / "r*"]).trials) == len(load(run).trials), "one run, named twice"


def test_a_newer_version_is_refused_with_what_to_do(run: Path) -> None:
    rewrite(run / "metrics.parquet", SCHEMA_VERSION + 1, [])
    with pytest.raises(ResultSetError, match=r"metrics\.parquet: written by a newer version.*update"):
        load(run)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_table_is_named_and_the_rest_loads_on_request(
    run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "metrics.parquet"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not parquet" * 9, "empty": b""}[damage])
    with pytest.raises(ResultSetError, match=r"metrics\.parquet: not a whole Parquet table.*skip_damaged"):
        load(run)
    with pytest.warns(UserWarning, match=r"metrics\.parquet.*left out"):
        results = load(run, skip_damaged=True)
    assert results.metrics.empty
    assert list(results.metrics) == TABLES["metrics"].names
    assert len(results.trials) == 21
    assert len(results.predictions) == 180
    for command in (show, report):
        assert command([str(run)]) == 2
        assert "metrics.parquet: not a whole Parquet table" in capsys.readouterr().err


def test_a_table_that_is_not_there_is_empty(run: Path) -> None:
    (run / "predictions.parquet").unlink()
    assert load(run).predictions.empty


def test_hyperparameters_of_two_types_meet_in_the_wider_one(tmp_path: Path) -> None:
    for name, rank in (("one", 8), ("two", 0.5)):
        made = make_up(name, {"lora": 0.8}, seeds=0)
        for row in made.trials:
            row["hp_rank"] = rank
        made.save(tmp_path / name)
    assert set(load(tmp_path).trials.hp_rank) == {8.0, 0.5}
    assert pa.types.is_int64(pq.read_schema(tmp_path / "one" / "trials.parquet").field("hp_rank").type)


def test_a_directory_may_have_a_name_that_looks_like_a_glob(run: Path) -> None:
    strange = run.rename(run.parent / "old [v2]")
    assert len(load(strange).trials) == 21
    assert len(load(strange.parent / "*").trials) == 21


def test_a_hyperparameter_may_be_null_in_all_trials_of_one_run(tmp_path: Path) -> None:
    for name, modules in (("a", None), ("b", "c_attn")):
        directory = make_up(name).save(tmp_path / name)
        file = directory / "trials.parquet"
        table = pq.read_table(file)
        kind = pa.float64() if modules is None else pa.string()
        column = pa.array([modules] * table.num_rows, kind)
        pq.write_table(table.append_column("hp_target_modules", column), file)
    trials = load(tmp_path).trials
    assert trials.hp_target_modules.isna().groupby(trials.experiment).all().to_dict() == {
        "a": True,
        "b": False,
    }


def test_a_snapshot_that_comes_while_a_table_is_read_does_no_harm(run: Path) -> None:
    """The file is opened once: what replaces it is another one."""
    table = pq.read_table(run / "trials.parquet")
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for rows in (1, table.num_rows):
                pq.write_table(table.slice(0, rows), run / ".new")
                (run / ".new").replace(run / "trials.parquet")

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert {len(load(run).trials) for _ in range(100)} <= {1, table.num_rows}
    finally:
        stop.set()
        writer.join()
