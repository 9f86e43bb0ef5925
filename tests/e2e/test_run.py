"""Whole runs of the command, as a user starts it: a real Ray, small models."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from results import load
from results.analysis import compare, summary

OUTCOME = [
    "trial_id",
    "method",
    "seed",
    "status",
    "evaluations",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "validation_macro_f1",
    "tokens",
]


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    file = tmp_path / "small.yaml"
    values = {
        "name": "small",
        "model": {"path": str(model_directories["gpt2"])},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            **{k: str(v) for k, v in data_files.items()},
        },
        "training": {"epochs": 2, "batch_size": 8},
        "search": {"trials": 3},
        "confirm": {"seeds": 0},
        "methods": {"head": {}, "full": {}, "lora": {"rank": [2, 4]}, "dora": {}, "qlora": {}},
        "storage": str(tmp_path / "runs"),
    }
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


def command(experiment: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.run", str(experiment), *arguments]


def run(experiment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(experiment, *arguments), capture_output=True, text=True, timeout=300)


def table(directory: Path) -> pd.DataFrame:
    trials = load(directory).trials
    columns = OUTCOME + sorted(column for column in trials if column.startswith("hp_"))
    return trials[columns].sort_values("trial_id", ignore_index=True)


def test_a_comparison_leaves_a_whole_result_set(experiment: Path, tmp_path: Path) -> None:
    done = run(experiment)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "small"
    results = load(directory)
    trials = results.trials
    assert trials.method.value_counts().to_dict() == dict.fromkeys(
        ["head", "full", "lora", "dora", "qlora"], 3
    )
    assert set(trials.status) <= {"completed", "stopped"}
    assert (
        trials[["train_seconds", "evaluation_seconds", "setup_seconds", "model_bytes"]].notna().all(axis=None)
    )
    assert trials.hp_rank.isna().equals(trials.method.isin(["head", "full"]))
    # Each method's first trial is its published default, or what is nearest to it in the search space.
    first = trials[trials.trial_number == 0].set_index("method")
    assert first.hp_learning_rate.to_dict() == {
        "head": 1e-3,
        "full": 6.25e-5,
        "lora": 5e-4,
        "dora": 2e-4,
        "qlora": 2e-4,
    }
    assert first.hp_rank["lora"] == 4
    # One checkpoint a method stays, that of its best trial.
    kept = results.checkpoints.set_index("method")
    assert set(kept.index) == set(trials.method)
    assert sorted(kept.trial_id) == sorted(path.name for path in (directory / "checkpoints").iterdir())
    for method, group in trials.groupby("method"):
        best = group.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        assert kept.trial_id[method] == best.trial_id
    curve = results.metrics[results.metrics.trial_id == trials.trial_id[0]]
    assert len(curve) == trials.evaluations[0]
    assert "Not confirmed" in done.stdout
    assert (directory / "report" / "index.html").is_file()
    assert f'pandas.read_parquet("{directory}/trials.parquet")' in done.stdout
    assert not done.stderr
    # The search is given the validation split alone.
    assert trials.test_accuracy.isna().all()

    # One trial again, from its row.
    again = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "--reproduce", str(directory), "qlora-000"],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the same numbers in all" in again.stdout


def test_random_search_without_early_stopping_is_the_same_with_two_trials_at_once(
    experiment: Path, tmp_path: Path
) -> None:
    settings = (
        "--set",
        "search.sampler=random",
        "--set",
        "search.early_stopping=none",
        "--methods",
        "full,lora",
    )
    for name in ("one", "two"):
        done = run(experiment, "--name", name, *settings)
        assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(table(tmp_path / "runs" / "one"), table(tmp_path / "runs" / "two"))


def test_the_default_search_is_the_same_with_one_slot(experiment: Path, tmp_path: Path) -> None:
    settings = ("--set", "resources.max_concurrent=1", "--methods", "head,full", "--set", "search.trials=4")
    for name in ("one", "two"):
        done = run(experiment, "--name", name, *settings)
        assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(table(tmp_path / "runs" / "one"), table(tmp_path / "runs" / "two"))


def test_a_trial_that_diverges_is_a_row_and_the_others_go_on(experiment: Path, tmp_path: Path) -> None:
    wild = '{"kind": "full", "learning_rate": 1e30}'
    done = run(experiment, "--methods", "head,wild", "--set", f"methods.wild={wild}")
    assert done.returncode == 0, done.stderr
    trials = load(tmp_path / "runs" / "small").trials.set_index("method")
    assert set(trials.loc["wild"].status) == {"diverged"}
    assert trials.loc["wild"].error.str.contains("loss became nan").all()
    assert trials.loc["head"].validation_accuracy.notna().all()
    assert "3 failed" in done.stdout


def test_the_same_kind_twice_under_two_names(experiment: Path, tmp_path: Path) -> None:
    done = run(
        experiment,
        *("--set", "methods.attention={kind: lora, target_modules: [c_attn], rank: 2}"),
        *("--methods", "lora,attention", "--set", "search.trials=1"),
    )
    assert done.returncode == 0, done.stderr
    trials = load(tmp_path / "runs" / "small").trials.set_index("method")
    assert trials.kind.to_dict() == {"lora": "lora", "attention": "lora"}
    assert trials.trainable_parameters["attention"] < trials.trainable_parameters["lora"]


def test_the_best_configurations_are_confirmed_on_test_and_a_copy_of_a_method_is_no_better(
    experiment: Path, tmp_path: Path
) -> None:
    """LoRA twice under two names: two searches, so two configurations or the same, and no difference."""
    done = run(
        experiment,
        *("--set", "methods.again={kind: lora, rank: [2, 4]}", "--methods", "head,lora,again"),
        *("--set", "confirm.seeds=3", "--set", "search.trials=2"),
    )
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "small"
    results = load(directory)
    trials = results.trials
    confirmed = trials[trials.phase == "confirm"]
    assert confirmed.groupby("method").seed.apply(sorted).map(tuple).nunique() == 1
    assert len(confirmed) == 9
    assert not set(confirmed.seed) & set(trials[trials.phase == "search"].seed)
    hyperparameters = [name for name in trials if name.startswith("hp_")]
    table = summary(results).set_index("method")
    for method, group in confirmed.groupby("method"):
        best = trials.set_index("trial_id").loc[table.best_trial[method]]
        for _, row in group.iterrows():
            assert row[hyperparameters].dropna().to_dict() == best[hyperparameters].dropna().to_dict()
    predictions = results.predictions
    assert len(predictions) == 9 * 24
    right = (predictions.label == predictions.prediction).groupby(predictions.trial_id).mean()
    assert confirmed.set_index("trial_id").test_accuracy.to_dict() == pytest.approx(right.to_dict())
    assert (predictions.logits.str.len() == 2).all()
    differences = compare(results).set_index(["method_a", "method_b"])
    assert "no difference shown" in differences.verdict["lora", "again"]
    assert "highest test accuracy" in done.stdout
    assert (directory / "report" / "index.html").is_file()
    assert len(list((directory / "report" / "figures").glob("*.png"))) == 4


@pytest.mark.parametrize("unit", ["examples", "train_seconds"])
def test_methods_get_the_same_purse(experiment: Path, tmp_path: Path, unit: str) -> None:
    limit = {"examples": 400, "train_seconds": 1.5}[unit]
    done = run(
        experiment,
        *("--methods", "head,full", "--set", f"budget.{unit}={limit}", "--set", "search.early_stopping=none"),
    )
    assert done.returncode == 0, done.stderr
    results = load(tmp_path / "runs" / "small")
    spent = results.trials.groupby("method")[unit].sum()
    assert (spent >= limit).all()
    # Spending ends with the evaluation at which the purse is empty; two trials run at once.
    steps = results.metrics.groupby("trial_id")[unit].diff().fillna(results.metrics[unit])
    assert (spent < limit + 2 * steps.max() + 1e-9).all()
    # A trial may start while another of its method spends the rest of the purse: one more, with two at once.
    counts = results.trials.method.value_counts()
    more = counts["head"] - counts["full"]
    assert abs(more) <= 1 if unit == "examples" else more >= -1
    page = (tmp_path / "runs" / "small" / "report" / "index.html").read_text()
    said = {"examples": "400 trained examples", "train_seconds": "1.5 seconds of training"}[unit]
    assert f"each method had {said}" in page


def start(experiment: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(experiment, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(look: Callable[[], list[Any]], count: int) -> list[Any]:
    """Look until there are so many."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(found := look()) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not {count} after two minutes")


def training(pid: int) -> list[psutil.Process]:
    """Return the worker processes below a process that are in a trial."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if re.match(r"ray::\w+-\d+ ", " ".join(child.cmdline())):
                found.append(child)
    return found


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text())["trials"][0] for file in sorted(directory.glob("journal/*.json"))]


def test_an_interrupted_run_is_continued_as_if_it_had_not_been(experiment: Path, tmp_path: Path) -> None:
    settings = (
        *("--set", "resources.max_concurrent=1", "--set", "search.trials=6"),
        *("--methods", "full,lora"),
    )
    whole = run(experiment, "--name", "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    directory = tmp_path / "runs" / "cut"
    process = start(experiment, "--name", "cut", *settings)
    wait_for(lambda: journal(directory), 7)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert f"Continue with: python -m orchestrator.run --resume {directory}" in out
    assert "Traceback" not in out + err
    cut = pd.read_parquet(directory / "trials.parquet")
    assert {"completed", "stopped"} & set(cut.status)
    assert "running" not in set(cut.status)
    ended = cut[cut.status != "interrupted"].set_index("trial_id").ended_at

    resumed = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "--resume", str(directory)], capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    pd.testing.assert_frame_equal(table(directory), table(tmp_path / "runs" / "whole"))
    after = load(directory)
    assert after.trials.set_index("trial_id").ended_at[ended.index].equals(ended), "ended trials ran again"
    assert after.trials.checkpoint_bytes.notna().all()
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert (
        kept
        == sorted(after.checkpoints.trial_id)
        == sorted(load(tmp_path / "runs" / "whole").checkpoints.trial_id)
    )


def test_other_data_is_not_mixed_into_a_run_that_is_continued(
    experiment: Path, data_files: dict[str, Path], tmp_path: Path
) -> None:
    validation = tmp_path / "validation.tsv"
    validation.write_text(data_files["validation"].read_text())
    done = run(
        experiment,
        *("--set", f"data.validation={validation}", "--methods", "head", "--set", "search.trials=1"),
    )
    assert done.returncode == 0, done.stderr
    validation.write_text(data_files["test"].read_text() + "good film\t1\n")
    directory = tmp_path / "runs" / "small"
    resumed = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "--resume", str(directory)], capture_output=True, text=True
    )
    assert resumed.returncode == 2
    assert "dataset_fingerprint" in resumed.stderr


LONG = (
    *("--set", "training.epochs=60", "--set", "search.early_stopping=none"),
    *("--methods", "full,lora", "--set", "search.trials=1"),
)
"""Two trials that run long enough to be disturbed."""


def evaluations(directory: Path, trial_id: str) -> list[Any]:
    file = directory / "journal" / f"{trial_id}.json"
    return json.loads(file.read_text())["metrics"] if file.exists() else []


def kill_in_trial(pid: int, directory: Path, trial_id: str, after: int) -> None:
    """Kill the one worker there is once a trial has made some more evaluations."""
    made = len(evaluations(directory, trial_id))
    wait_for(lambda: evaluations(directory, trial_id), made + after)
    wait_for(lambda: training(pid), 1)[0].kill()


def test_a_trial_whose_worker_is_killed_goes_on_as_if_nothing_had_happened(
    experiment: Path, tmp_path: Path
) -> None:
    one = (*LONG, "--set", "resources.max_concurrent=1")
    whole = run(experiment, "--name", "whole", *one)
    assert whole.returncode == 0, whole.stderr
    directory = tmp_path / "runs" / "cut"
    process = start(experiment, "--name", "cut", *one)
    kill_in_trial(process.pid, directory, "lora-000", after=7)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err

    pd.testing.assert_frame_equal(table(directory), table(tmp_path / "runs" / "whole"))
    trials = load(directory).trials.set_index("trial_id")
    assert set(trials.status) == {"completed"}
    assert trials.retries.to_dict() == {"full-000": 0, "lora-000": 1}
    assert trials.lost_seconds["full-000"] == 0
    assert trials.lost_seconds["lora-000"] > 0
    curve = ["trial_id", "evaluation", "step", "examples", "tokens", "train_loss", "validation_loss"]
    cut, expected = (
        load(tmp_path / "runs" / name).metrics[curve].sort_values(curve[:2], ignore_index=True)
        for name in ("cut", "whole")
    )
    pd.testing.assert_frame_equal(cut, expected)
    checkpoints = [
        load(tmp_path / "runs" / name).checkpoints.set_index("trial_id").sha256 for name in ("cut", "whole")
    ]
    assert checkpoints[0].to_dict() == checkpoints[1].to_dict()
    assert not list((directory / "states").rglob("state.safetensors")), "states of ended trials stay"


def test_a_trial_whose_worker_dies_too_often_is_a_row_and_the_others_go_on(
    experiment: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "small"
    process = start(
        experiment, *LONG, *("--set", "resources.max_concurrent=1", "--set", "resources.max_failures=1")
    )
    for _ in range(2):
        kill_in_trial(process.pid, directory, "full-000", after=3)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    trials = pd.read_parquet(directory / "trials.parquet").set_index("trial_id")
    assert trials.status.to_dict() == {"full-000": "failed", "lora-000": "completed"}
    assert trials.retries.to_dict() == {"full-000": 1, "lora-000": 0}
    assert "died" in trials.error["full-000"]
    assert "Failure #" not in trials.error["full-000"], "the error is the last one's"
    assert trials.evaluations["full-000"] >= 6
    assert "1 failed" in out
    assert not list((directory / "states").rglob("state.safetensors"))
