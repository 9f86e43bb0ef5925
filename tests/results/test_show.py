from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up import make_up

from results.analysis import summary
from results.loading import load
from results.show import main


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(make_up(examples=400).save(tmp_path / "run"))


def test_the_table_and_the_verdict(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run]) == 0
    out = capsys.readouterr().out
    row = summary(load(run)).set_index("method").loc["lora"]
    low, high = 100 * row.test_accuracy_low, 100 * row.test_accuracy_high
    assert f"{row.test_accuracy:.1%} [{low:.1f}, {high:.1f}]" in out
    assert "lora has the highest test accuracy" in out


def test_failed_confirm_trials_stand_in_the_table_and_in_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_up(seeds=5)
    made.fail_confirm("lora", [0, 1, 2])
    assert main([str(made.save(tmp_path / "run"))]) == 0
    out = capsys.readouterr().out
    assert "] (3 failed)" in next(line for line in out.splitlines() if line.startswith("lora  "))
    assert "but 3 of its 5 confirm trials failed" in " ".join(out.split())


def test_costs_that_mislead_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_up(examples=4)
    made.trials[0]["trials_per_pack"] = 4
    assert main([str(made.save(tmp_path / "run"))]) == 0
    assert "Trials were trained in packs: do not compare their times" in capsys.readouterr().out


def test_another_metric_and_order(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--metric", "peak_memory_bytes", "--sort", "test_accuracy"]) == 0
    out = capsys.readouterr().out
    assert "head has the lowest peak memory bytes" in out
    names = [line.split()[0] for line in out.splitlines()[2:5]]
    assert names == ["lora", "full", "head"]


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("csv", lambda text: pd.read_csv(io.StringIO(text))),
        ("json", lambda text: pd.DataFrame(json.loads(text))),
    ],
)
def test_formats_that_programs_read(
    run: str, form: str, read: Callable[[str], pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, "--format", form, "--sort", "train_seconds"]) == 0
    table = read(capsys.readouterr().out)
    assert list(table.method) == ["head", "full", "lora"]
    expected = summary(load(run)).set_index("method").test_accuracy.astype(float)
    assert table.set_index("method").test_accuracy.to_dict() == pytest.approx(expected.to_dict())


def test_markdown(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| experiment | method |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "acc"], "metric: expected one of test_accuracy"),
        (["--sort", "speed"], "--sort: expected one of experiment, method"),
    ],
)
def test_bad_arguments_get_one_message(
    run: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_run_gets_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "no result set" in capsys.readouterr().err
