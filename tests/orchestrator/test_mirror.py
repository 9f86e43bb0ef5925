"""A run's local copy and its URI: a real S3 server, outages switched on and off."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import Proxy

from orchestrator import fetch as fetching
from orchestrator import mirror as module
from orchestrator import scratch
from orchestrator.errors import ExperimentError
from orchestrator.experiment import Assignment, Experiment
from orchestrator.fetch import fetch
from orchestrator.history import TrialHistory
from orchestrator.mirror import Mirror
from orchestrator.run import main
from orchestrator.scratch import Scratch
from results.remote import RemoteDirectory
from results.store import Snapshots, TrialRecord, write_record


@pytest.fixture
def uri(s3: Proxy, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}/run"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    directory = tmp_path / "copy" / "run"
    directory.mkdir(parents=True)
    (directory / ".driver.lock").touch()
    (directory / "experiment.json").write_text("{}")
    return directory


@pytest.fixture
def told() -> list[str]:
    return []


def journal(
    directory: Path, trial_id: str, status: str = "running", evaluations: int = 1, **rows: Any
) -> None:
    identity = {"experiment": "run", "trial_id": trial_id, "method": "lora"}
    metrics = [{**identity, "evaluation": i + 1} for i in range(evaluations)]
    write_record(directory, TrialRecord({**identity, "status": status}, metrics, **rows))


def wait_until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def contents(directory: Path) -> dict[str, bytes]:
    files = (file for file in directory.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


def test_what_changes_is_carried_over_and_the_copy_goes(
    uri: str, copy: Path, told: list[str], s3: Proxy
) -> None:
    remote = RemoteDirectory(uri)
    mirror = Mirror(copy, uri, {})
    mirror.start(told.append)
    journal(copy, "lora-000")
    (copy / "ray" / "search").mkdir(parents=True)
    (copy / "ray" / "search" / "of-tune").touch()
    wait_until(lambda: remote.has("journal/lora-000.json"))
    remote.write("checkpoints/lora-000/adapter.bin", b"1")
    remote.write("states/lora-000/000001-x/progress.json", b"1")
    journal(copy, "lora-000", "completed", 2)
    journal(copy, "lora-001")
    Snapshots(copy).write()
    (copy / "journal" / "lora-001.json").unlink()
    mirror.drop("checkpoints/lora-000")
    mirror.drop("states/lora-000")
    mirror.drop("states/never-there")
    expected = contents(copy)
    expected.pop("ray/search/of-tune")
    s3.seen.clear()
    assert mirror.finish(told.append)
    assert {name: remote.read(name) for name in remote.files()} == expected
    assert not copy.parent.exists()
    assert told == []
    # A record goes before what it does not name any more is removed.
    changes = [(method, path) for method, path in s3.seen if method in ("PUT", "POST")]
    record = next(i for i, (_, path) in enumerate(changes) if path.endswith("journal/lora-000.json"))
    removal = next(i for i, (method, path) in enumerate(changes) if method == "POST" and "delete" in path)
    assert record < removal


def test_what_a_trial_writes_that_begins_anew_is_not_dropped(uri: str, copy: Path, told: list[str]) -> None:
    """As one that confirms a better configuration, after a run has grown."""
    remote = RemoteDirectory(uri)
    mirror = Mirror(copy, uri, {})
    for name in ("lora-seed0", "lora-seed1"):
        remote.write(f"checkpoints/{name}/model.safetensors", b"1")
        mirror.drop(f"checkpoints/{name}")
    assignment = Assignment("lora", 0, {"rank": 4, "alpha": 8, "learning_rate": 1e-3}, "confirm")
    experiment = Experiment.model_validate({"methods": {"lora": {}}})
    mirror.changed(TrialHistory(assignment, experiment.trial_spec(assignment)))
    mirror.start(told.append)
    assert mirror.finish(told.append)
    assert remote.has("checkpoints/lora-seed0/model.safetensors")
    assert not remote.has("checkpoints/lora-seed1/model.safetensors")


def test_an_outage_is_told_twice_and_loses_nothing(uri: str, copy: Path, told: list[str], s3: Proxy) -> None:
    remote = RemoteDirectory(uri)
    mirror = Mirror(copy, uri, {})
    mirror.start(told.append)
    wait_until(lambda: remote.has("experiment.json"))
    s3.mode = "fail"
    for evaluations in range(1, 30):
        journal(copy, "lora-000", evaluations=evaluations)
        time.sleep(0.02)
    wait_until(lambda: len(told) == 1)
    assert "AWS Error" in told[0]
    assert f"is kept in {copy}" in told[0]
    time.sleep(2)  # more tries, of which nobody is told
    s3.mode = "pass"
    wait_until(lambda: len(told) == 2)
    assert told[1] == f"{uri} can be written again"
    assert mirror.finish(told.append)
    assert len(json.loads(remote.read("journal/lora-000.json"))["metrics"]) == 29
    assert len(told) == 2


@pytest.fixture
def interrupted(uri: str, copy: Path, told: list[str], s3: Proxy) -> None:
    """A run that could not carry over its last files, and was told not to wait."""
    mirror = Mirror(copy, uri, {})
    mirror.start(told.append)
    journal(copy, "lora-000", evaluations=1)
    wait_until(lambda: RemoteDirectory(uri).has("journal/lora-000.json"))
    s3.mode = "fail"
    journal(copy, "lora-000", evaluations=5)

    def interrupt(text: str) -> None:
        told.append(text)
        if "Ctrl-C" in text:
            os.kill(os.getpid(), signal.SIGINT)

    assert not mirror.finish(interrupt)
    s3.mode = "pass"


@pytest.mark.usefixtures("interrupted")
def test_a_run_goes_on_from_the_copy_that_is_newer_than_the_storage(
    uri: str, copy: Path, told: list[str]
) -> None:
    assert f"Ctrl-C stops waiting and leaves the rest in {copy}" in told[-2]
    assert f"the rest is in {copy}" in told[-1]
    assert f"--resume {uri}" in told[-1]
    before = contents(copy)
    known = fetch(uri, copy)
    assert contents(copy) == before
    mirror = Mirror(copy, uri, known)
    mirror.start(told.append)
    assert mirror.finish(told.append)
    assert len(json.loads(RemoteDirectory(uri).read("journal/lora-000.json"))["metrics"]) == 5


@pytest.mark.usefixtures("interrupted")
def test_a_copy_is_not_used_once_another_machine_has_gone_on(
    uri: str, copy: Path, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other-machine" / "run"
    other.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(module.socket, "gethostname", lambda: "other-machine")
        with pytest.raises(ExperimentError, match=r"was running it \d+ s ago.*try again in \d+ s"):
            fetch(uri, other)
        patch.setattr(fetching, "SILENT_SECONDS", 0.0)
        mirror = Mirror(other, uri, fetch(uri, other))
        mirror.start(told.append)
        journal(other, "lora-000", "completed", evaluations=2)
        assert mirror.finish(told.append)
    (copy / "stale").touch()
    fetch(uri, copy)
    assert "stale" not in contents(copy)
    assert len(json.loads((copy / "journal" / "lora-000.json").read_text())["metrics"]) == 2
    assert (copy / ".driver.lock").exists()


def test_a_driver_whose_run_was_taken_over_ends(
    uri: str, copy: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.0)
    mirror = Mirror(copy, uri, {})
    mirror.start(told.append)
    said = json.dumps(
        {"token": "other", "host": "other-machine", "copy": "", "at": "2026-01-01T00:00:00+00:00"}
    )

    def take_over() -> None:
        for _ in range(100):  # the driver may be in the middle of a beat
            RemoteDirectory(uri).write("driver.json", said.encode())
            time.sleep(0.3)

    with pytest.raises(KeyboardInterrupt):
        take_over()
    (copy / "mine").touch()
    assert not mirror.finish(told.append)
    assert "other-machine has taken over this run" in told[0]
    assert not RemoteDirectory(uri).has("mine")
    assert (copy / "mine").exists()


def test_what_a_dead_driver_left_is_tidied(uri: str, copy: Path) -> None:
    """A state may be newer than the record; of what has ended, only what its record names stays."""
    kept = {"experiment": "run", "trial_id": "a", "method": "lora", "path": "checkpoints/a"}
    journal(copy, "a", "completed", 3, checkpoints=[kept])
    journal(copy, "b", "completed", 3)
    journal(copy, "c", "running", 2)
    remote = RemoteDirectory(uri)
    remote.put(copy)
    for name in ("000002-x", "000003-x"):
        for file in ("progress.json", "state.safetensors"):
            for trial_id in ("a", "c", "unknown"):
                remote.write(f"states/{trial_id}/{name}/{file}", b"1")
    for trial_id in ("a", "b", "c", "unknown"):
        remote.write(f"checkpoints/{trial_id}/adapter.bin", b"1")
    (copy / "states" / "c" / "000009-x").mkdir(parents=True)
    known = fetch(uri, copy)
    left = {name.rpartition("/")[0] for name in remote.files() if name.startswith(("states", "checkpoints"))}
    assert left == {"states/c/000002-x", "checkpoints/a", "checkpoints/c"}
    assert [path.name for path in (copy / "states" / "c").iterdir()] == ["000002-x"]
    assert set(known) == {"experiment.json", "journal/a.json", "journal/b.json", "journal/c.json"}


def test_a_new_run_does_not_take_the_place_of_another(uri: str, copy: Path, told: list[str]) -> None:
    RemoteDirectory(uri).write("experiment.json", b"another's")
    mirror = Mirror(copy, uri)
    with pytest.raises(ExperimentError, match=f"name: {uri} exists already"):
        mirror.start(told.append)
    mirror.finish(told.append)
    assert RemoteDirectory(uri).read("experiment.json") == b"another's"
    assert not copy.exists(), "else it would be in the way of the next run of this name"


def test_the_table_of_trials_is_carried_over_last(
    uri: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(RemoteDirectory, "upload", lambda self, local, name: names.append(name))
    journal(copy, "a", "completed")
    Snapshots(copy).write()
    Mirror(copy, uri).copy()
    assert names[-1] == "trials.parquet"
    assert {"metrics.parquet", "journal/a.json"} < set(names)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("driver.json", b"{}", "driver.json: not what a driver writes"),
        ("driver.json", b"nonsense", "driver.json: not what a driver writes"),
        ("journal/a.json", b"{", "a.json: not a trial as the program records it"),
    ],
)
def test_what_is_no_run_is_refused(uri: str, copy: Path, name: str, content: bytes, says: str) -> None:
    RemoteDirectory(uri).put(copy)
    RemoteDirectory(uri).write(name, content)
    with pytest.raises(ExperimentError, match=says):
        fetch(uri, copy)


def test_a_dry_run_removes_nothing(uri: str, copy: Path) -> None:
    journal(copy, "a", "completed")
    remote = RemoteDirectory(uri)
    remote.put(copy)
    for name in ("states/a/zz/progress.json", "checkpoints/a/adapter.bin"):
        remote.write(name, b"1")
    before = remote.files()
    fetch(uri, copy, tidies=False)
    assert remote.files() == before
    fetch(uri, copy)
    assert not {name for name in remote.files() if name.startswith(("states", "checkpoints"))}


def save(work: Scratch, evaluation: int) -> None:
    directory = work.directory / "states" / "lora-000" / f"{evaluation:06d}-x"
    directory.mkdir(parents=True)
    for name in (scratch.TENSORS_FILE, scratch.PROGRESS_FILE):
        (directory / name).write_text(f"{evaluation}")
    work.saved("lora-000")


def test_a_trial_goes_on_on_another_node(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Proxy
) -> None:
    remote = RemoteDirectory(uri)
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    one = Scratch(uri)
    one.begin("lora-000")
    for evaluation in (1, 2, 3):
        save(one, evaluation)
    checkpoint = one.directory / "checkpoints" / "lora-000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter.bin").write_text("best")
    one.put(checkpoint)
    assert sorted(remote.child("states/lora-000").directories()) == ["000002-x", "000003-x"]
    # Its node dies while it copies a state.
    remote.write(f"states/lora-000/000004-x/{scratch.TENSORS_FILE}", b"half")

    two = Scratch(uri)
    two.begin("lora-000")
    states = two.directory / "states" / "lora-000"
    assert sorted(path.name for path in states.iterdir()) == ["000002-x", "000003-x"]
    assert (states / "000003-x" / scratch.TENSORS_FILE).read_text() == "3"
    best = two.directory / "checkpoints" / "lora-000"
    two.get(best)
    assert (best / "adapter.bin").read_text() == "best"
    save(two, 4)
    assert sorted(remote.child("states/lora-000").directories()) == ["000003-x", "000004-x"]
    s3.seen.clear()
    two.get(best)
    assert not s3.seen, "what is here is not fetched"
    two.begin("other")
    assert not list(two.directory.iterdir())


def test_what_killed_processes_left_on_a_node_is_removed(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    runs = tmp_path / f"finetune-comparison-{os.getuid()}"
    (runs / "999999999-dead" / "states").mkdir(parents=True)
    (runs / f"{os.getpid()}-alive").mkdir()
    work = Scratch(uri)
    assert {path.name for path in runs.iterdir()} == {f"{os.getpid()}-alive", work.directory.name}


@pytest.mark.parametrize("place", ["", "run"])
def test_what_is_no_run_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str) -> None:
    """Such as the directory of all runs, or one of another program that has checkpoints, too."""
    for name in ("run/checkpoints/step-1000/model.safetensors", "run/states/a/b/f", "run/states/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    assert main(["--resume", f"file://{tmp_path}/{place}"]) == 2
    assert "no experiment.json" in capfd.readouterr().err
    assert contents(tmp_path) == before
