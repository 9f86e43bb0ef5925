"""A run that dies is continued by one command, and its numbers are those of one that did not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from orchestrator.run import main
from results import load

if TYPE_CHECKING:
    from conftest import Ledger
from runs import assert_same, evaluations, finish, journal, settings, start, wait_for

ONE_SLOT = [
    *settings("resources.max_concurrent=1", "search.trials=4", "training.epochs=8", "confirm.seeds=2"),
    *settings("search.grace_evaluations=3"),
    *("--methods", "full,lora"),
]
"""The default search, deterministic with one slot: each suggestion has seen the results of all before it."""


def changes(directory: Path) -> set[tuple[str, int]]:
    """Return what changes whenever a trial is journaled."""
    return {(file.name, file.stat().st_mtime_ns) for file in directory.glob("journal/*.json")}


def wait_for_news(directory: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has journaled anything, or has ended."""
    before = changes(directory)
    wait_for(lambda: changes(directory) != before or process.poll() is not None)


def kill(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> str:
    """End a run's driver and return what it had printed."""
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err
    return out


def test_a_run_that_dies_twice_is_the_run_that_did_not(experiment: Path, tmp_path: Path) -> None:
    finish(start(experiment, "--name", "whole", *ONE_SLOT))
    directory = tmp_path / "runs" / "cut"

    process = start(experiment, "--name", "cut", *ONE_SLOT)
    wait_for(lambda: len(journal(directory)) == 3)
    time.sleep(0.3)
    out = kill(process, signal.SIGINT)
    assert process.returncode == 130
    assert f"Continue with: python -m orchestrator.run --resume {directory}" in out
    cut = pd.read_parquet(directory / "trials.parquet")
    assert set(cut.status) <= {"completed", "stopped", "interrupted"}
    ended = cut[cut.status != "interrupted"].set_index("trial_id").ended_at

    process = start("--resume", directory)
    wait_for(lambda: any(evaluations(directory, f"{method}-seed0") >= 4 for method in ("full", "lora")))
    kill(process)
    (state,) = (directory / "states").rglob("state.safetensors")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)

    out = finish(start("--resume", directory))
    assert "done, 1 goes on" in out
    assert "not what was written; it went on from its beginning" in out
    assert_same(directory, tmp_path / "runs" / "whole")
    assert load(directory).trials.set_index("trial_id").ended_at[ended.index].equals(ended), "ran again"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(int(os.environ.get("SOAK_RUNS", "4"))))
def test_a_driver_killed_at_random_moments_loses_nothing(
    experiment: Path, tmp_path: Path, seed: int, ledger: Ledger
) -> None:
    finish(start(experiment, "--name", "whole", *ONE_SLOT))
    directory, dice = tmp_path / "runs" / "cut", random.Random(seed)
    process = start(experiment, "--name", "cut", *ONE_SLOT)
    waited: dict[str, list[float]] = {"search": [], "confirm": []}
    wait_for(lambda: (directory / "experiment.json").exists())
    for _ in range(8):
        if dice.random() < 0.8:  # else while it starts
            wait_for_news(directory, process)
        time.sleep(dice.uniform(0, 2.5))
        if process.poll() is not None:
            break
        kill(process)
        killed_at = time.monotonic()
        is_confirm = any(row["phase"] == "confirm" for row in journal(directory))
        process = start("--resume", directory)
        wait_for_news(directory, process)
        waited["confirm" if is_confirm else "search"].append(time.monotonic() - killed_at)
    finish(process)
    assert_same(directory, tmp_path / "runs" / "whole")
    for phase, seconds in waited.items():
        for one in seconds:
            ledger.enter(f"the driver dies in the {phase}", "SIGKILL at a random moment", directory, 12, one)


def test_a_run_may_grow_and_may_not_become_another(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = [
        *settings("search.trials=1", "training.epochs=1", "confirm.seeds=1", "search.sampler=random"),
        *settings("resources.max_concurrent=1"),
    ]
    finish(start(experiment, "--methods", "head", *small))
    directory = tmp_path / "runs" / "small"
    before = load(directory).trials.set_index("trial_id")

    assert (
        main([str(experiment), "--resume", str(directory), "--methods", "head", *small, "--set", "seed=3"])
        == 2
    )
    assert "seed: was 0 when the run began, is 3" in capfd.readouterr().err
    assert main(["--resume", str(directory), "--set", "confirm.seeds=0"]) == 2
    said = capfd.readouterr().err
    assert "confirm.seeds: was 1 when the run began, is 0" in said
    assert "may grow" in said
    assert main(["--resume", str(directory), "--set", "budget.examples=1000"]) == 2, "it had another rule"
    assert "budget.examples: was None when the run began, is 1000" in capfd.readouterr().err

    grown = [*small, *settings("search.trials=3", "confirm.seeds=2")]
    out = finish(start(experiment, "--resume", directory, "--methods", "head,full", *grown))
    after = load(directory).trials.set_index("trial_id")
    assert "2 trials are done" in out
    assert after.method.value_counts().to_dict() == {"head": 5, "full": 5}
    assert after.ended_at["head-000"] == before.ended_at["head-000"], "ran again"
    # The confirmed configuration is the best of all, not that of the shorter search.
    for method, group in after[after.phase == "search"].groupby("method"):
        best = group.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        confirmed = after[(after.method == method) & (after.phase == "confirm")]
        assert set(confirmed.hp_learning_rate) == {best.hp_learning_rate}
    assert json.loads((directory / "experiment.json").read_text())["search"]["trials"] == 3


def test_a_run_is_continued_by_one_process_of_its_owner_on_its_own_data(
    experiment: Path, data_files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    validation = tmp_path / "validation.tsv"
    validation.write_text(data_files["validation"].read_text())
    directory = tmp_path / "runs" / "small"
    one = [*settings(f"data.validation={validation}", "search.trials=1"), "--methods", "head"]
    process = start(experiment, *one)
    wait_for(lambda: (directory / "log.txt").exists())
    assert main(["--resume", str(directory)]) == 2
    assert "another process is running it" in capfd.readouterr().err
    finish(process)

    if os.geteuid() == 0:  # nobody else can give a file away
        shutil.chown(directory / "experiment.json", "nobody")
        assert main(["--resume", str(directory)]) == 2
        said = capfd.readouterr().err
        assert "belongs to nobody" in said
        assert main(["--resume", str(directory), "--dry-run", "--trust-owner"]) == 0
        shutil.chown(directory / "experiment.json", "root")

    validation.write_text(data_files["test"].read_text() + "good film\t1\n")
    assert main(["--resume", str(directory)]) == 2
    assert "dataset_fingerprint" in capfd.readouterr().err
