"""Trials that share a process have the results of trials that do not, also when that process is killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest
from runs import (
    assert_no_files_left,
    assert_undisturbed,
    finish,
    settings,
    start,
    wait_for,
    wait_for_evaluations,
)

from orchestrator.run import main
from results import load

SEARCH = settings(
    "search.sampler=random",
    "search.early_stopping=none",
    "search.trials=1",
    "training.epochs=16",
)
METHODS = ("--methods", "head,lora,qlora")
PACKED = settings("resources.max_concurrent=3", "resources.trials_per_pack=3")


def pack_of(pid: int) -> psutil.Process | None:
    """Return the process of a run's pack."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if " ".join(child.cmdline()).startswith("ray::PackActor"):
                return child
    return None


def test_a_pack_that_is_killed_gives_the_results_of_trials_by_themselves(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start(experiment, *SEARCH, *METHODS, *PACKED)
    directory = tmp_path / "runs" / "small"
    wait_for_evaluations(directory, "qlora-000", more=3)
    wait_for(lambda: pack_of(process.pid)).kill()
    finish(process)
    assert_undisturbed(directory, tolerance=1e-4)
    assert_no_files_left(directory)
    trials = load(directory).trials
    assert sorted(trials.trial_id) == ["head-000", "lora-000", "qlora-000"]
    assert set(trials.status) == {"completed"}
    assert set(trials.trials_per_pack) == {3}
    assert trials.set_index("trial_id").retries["qlora-000"] == 1
    assert main(["--reproduce", str(directory), "qlora-000"]) == 2
    assert "qlora-000 was trained beside others in a pack" in capfd.readouterr().err
