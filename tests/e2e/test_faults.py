"""Faults that really happen to a run: what each costs is written down, and nothing else is disturbed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
import psutil
import pytest

from results import load

if TYPE_CHECKING:
    from conftest import Ledger
from runs import (
    assert_no_files_left,
    assert_undisturbed,
    finish,
    run,
    seconds_until_training,
    settings,
    start,
    training,
    wait_for,
    wait_for_evaluations,
)

LONG = [
    *settings("training.epochs=24", "search.early_stopping=none", "search.trials=1"),
    *settings("resources.max_concurrent=1"),
    *("--methods", "full,lora"),
]
"""Two trials, one after the other, that run long enough to be disturbed."""


def signal_in_trial(pid: int, directory: Path, trial_id: str, what: signal.Signals) -> None:
    """Send the one worker there is a signal once a trial has made some more evaluations."""
    wait_for_evaluations(directory, trial_id, more=7)
    wait_for(lambda: training(pid))[0].send_signal(what)


def seconds_until_another_worker(pid: int, directory: Path, trial_id: str, what: signal.Signals) -> float:
    """Send the one worker there is a signal in a trial, and wait until the trial goes on."""
    wait_for_evaluations(directory, trial_id, more=7)
    (worker,) = wait_for(lambda: training(pid))
    return seconds_until_training(directory, trial_id, lambda: worker.send_signal(what))


RUN_WITH_A_CLOCK_THAT_JUMPS = """
import sys, threading, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
import time_machine
from orchestrator.run import main

def jump():
    while not Path(sys.argv[1]).exists():
        time.sleep(0.02)
    time_machine.travel(datetime.now(UTC) - timedelta(hours=2)).start()

threading.Thread(target=jump, daemon=True).start()
sys.exit(main(sys.argv[2:]))
"""


def test_workers_that_are_killed_and_hang_and_a_clock_that_jumps_change_nothing(
    experiment: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """The driver's clock: workers look at none but the monotonic one, which never jumps."""
    jump, directory = tmp_path / "jump", tmp_path / "runs" / "cut"
    arguments = [jump, experiment, "--name", "cut", *LONG, *settings("resources.trial_timeout=10")]
    process = start(*arguments, program=["-c", RUN_WITH_A_CLOCK_THAT_JUMPS])
    wait_for_evaluations(directory, "full-000", more=7)
    jumped = seconds_until_training(directory, "full-000", jump.touch)
    killed = seconds_until_another_worker(process.pid, directory, "full-000", signal.SIGKILL)
    hung = seconds_until_another_worker(process.pid, directory, "lora-000", signal.SIGSTOP)
    out = finish(process)
    ledger.enter("the clock jumps back", "two hours, in the driver", directory, 2, jumped)
    ledger.enter("a worker dies", "SIGKILL", directory, 2, killed)
    ledger.enter("a worker hangs", "SIGSTOP; trial_timeout of 10 s", directory, 2, hung)

    assert_undisturbed(directory)
    assert_no_files_left(directory)
    trials = load(directory).trials.set_index("trial_id")
    assert set(trials.status) == {"completed"}
    assert trials.retries.to_dict() == {"full-000": 1, "lora-000": 1}
    assert "full-000: The actor died" in out
    assert "lora-000: no report for 10 s (resources.trial_timeout)" in out
    assert out.count("in another process, try 2 of 3") == 2
    assert trials.started_at["lora-000"] < trials.started_at["full-000"], "the clock did not jump"
    assert (trials[["train_seconds", "evaluation_seconds"]] >= 0).all(axis=None)
    assert (trials.lost_seconds > 0).all()


def test_a_trial_whose_worker_dies_too_often_is_a_row_and_the_others_go_on(
    experiment: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "small"
    process = start(experiment, *LONG, *settings("resources.max_failures=1"))
    for _ in range(2):
        signal_in_trial(process.pid, directory, "full-000", signal.SIGKILL)
    out = finish(process)
    trials = pd.read_parquet(directory / "trials.parquet").set_index("trial_id")
    assert trials.status.to_dict() == {"full-000": "failed", "lora-000": "completed"}
    assert trials.retries.to_dict() == {"full-000": 1, "lora-000": 0}
    assert "died" in trials.error["full-000"]
    assert "Failure #" not in trials.error["full-000"], "the error is the last one's"
    assert trials.evaluations["full-000"] >= 6
    assert "1 failed" in out
    assert not list((directory / "states").rglob("*.safetensors"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB where runs are stored."""
    directory = tmp_path / "runs"
    directory.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_run_waits_while_its_disk_is_full(small_disk: Path, experiment: Path, ledger: Ledger) -> None:
    directory, printed = small_disk / "cut", experiment.with_suffix(".out")
    with open(printed, "w") as out:
        process = start(experiment, "--name", "cut", *LONG, *settings("resources.max_failures=5"), out=out)
    wait_for_evaluations(directory, "full-000", more=7)
    ballast = small_disk / "ballast"

    def is_waiting() -> bool:
        # A worker that has just replaced a state has freed as much as the next one takes: fill that, too.
        with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return "cannot be written: No space left on device; the run waits" in printed.read_text()

    wait_for(is_waiting)
    waited = seconds_until_training(directory, "full-000", ballast.unlink)
    assert process.wait(timeout=300) == 0, printed.read_text()
    ledger.enter("the disk is full", "a tmpfs of 40 MB, filled up, then freed", directory, 2, waited)
    assert "can be written again; the run goes on" in printed.read_text()
    assert "Traceback" not in printed.read_text()
    assert_undisturbed(directory)
    assert_no_files_left(directory)
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.usefixtures("much_memory")
def test_a_trial_that_takes_all_memory_is_a_row_and_the_others_go_on(
    experiment: Path, tmp_path: Path
) -> None:
    """Ray's memory monitor ends its worker before the machine's own would end anything.

    The trial would take 12 GB. Of what other processes hold now, some may be free by then.
    """
    rows = tmp_path / "long.tsv"
    rows.write_text("".join(f"{' '.join([('good', 'bad')[i % 2]] * 60)}\t{i % 2}\n" for i in range(24_000)))
    threshold = (psutil.virtual_memory().used + 5e9) / psutil.virtual_memory().total
    if threshold > 0.9:
        pytest.skip("needs 12 GB of free memory")
    with TemporaryDirectory(prefix="ray-") as of_ray:  # its sockets allow no longer name
        done = run(
            experiment,
            *settings(f"data.train={rows}", "training.epochs=1", "search.trials=1", "data.max_length=60"),
            *settings("methods.hungry={kind: full, batch_size: 24000}", "resources.max_failures=0"),
            *settings("methods.head={batch_size: 500}", "resources.max_concurrent=1"),
            *("--methods", "hungry,head"),
            environment={"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_TMPDIR": of_ray},
        )
        [log] = Path(of_ray).glob("ray/session_2*/logs/gcs_server.out")
        said = log.read_text()[-6000:]
    assert done.returncode == 0, done.stdout + done.stderr + said
    trials = load(tmp_path / "runs" / "small").trials.set_index("method")
    assert trials.status.to_dict() == {"hungry": "out_of_memory", "head": "completed"}
    assert "memory" in trials.error["hungry"]


def test_workers_that_are_ended_for_memory_while_they_start_say_so(experiment: Path, tmp_path: Path) -> None:
    done = run(
        experiment,
        *settings("search.trials=1", "resources.max_failures=1", "resources.max_concurrent=1"),
        *("--methods", "head"),
        environment={"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "50"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    [row] = load(tmp_path / "runs" / "small").trials.to_dict("records")
    assert (row["status"], row["retries"]) == ("out_of_memory", 1)
    assert row["error"].startswith("its machine ran out of memory")
    assert "no trial finished" in done.stdout
