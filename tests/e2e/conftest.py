"""A small experiment that runs for seconds."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import psutil
import pytest
from runs import end_started, write_experiment

from results import load


@dataclass
class Ledger:
    """What faults cost, as it was measured: ``make soak`` makes a table of it."""

    rows: dict[tuple[str, str], list[tuple[int, int, float]]] = field(default_factory=dict)

    def enter(self, fault: str, how: str, directory: Path, trials: int, seconds: float) -> None:
        """Note what one fault has cost.

        Arguments:
            fault: what happened.
            how: it was caused.
            directory: of the run, which has come to its end.
            trials: that the run should have.
            seconds: from the fault until training went on.
        """
        found = load(directory).trials
        lost = trials - int(found.trial_id.nunique())
        duplicated = len(found) - int(found.trial_id.nunique())
        assert (lost, duplicated) == (0, 0)
        self.rows.setdefault((fault, how), []).append((lost, duplicated, seconds))

    def table(self) -> str:
        """Return everything as Markdown."""
        columns = (
            "fault",
            "how it was caused",
            "times",
            "trials lost",
            "rows duplicated",
            "seconds until on",
        )
        lines = [
            f"| {' | '.join(columns)} |",
            "|---|---|---|---|---|---|",
        ]
        for (fault, how), tried in self.rows.items():
            lost, duplicated = sum(row[0] for row in tried), sum(row[1] for row in tried)
            seconds = sorted(row[2] for row in tried)
            spread = f"{seconds[len(seconds) // 2]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
            lines.append(f"| {fault} | {how} | {len(tried)} | {lost} | {duplicated} | {spread} |")
        return "\n".join(lines)


@pytest.fixture(scope="session")
def ledger() -> Iterator[Ledger]:
    """Collects what faults cost; ``FAULTS_TABLE`` names a file for the table."""
    kept = Ledger()
    yield kept
    if (name := os.environ.get("FAULTS_TABLE")) and kept.rows:
        machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU"
        Path(name).write_text(
            f"# What faults cost\n\n`make soak` on {date.today()}: {machine}, Python"
            f" {platform.python_version()}. Seconds are the median (least to most); a new worker or driver"
            f" imports torch, transformers and peft first.\n\n{kept.table()}\n"
        )


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    yield
    end_started()


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    """A file that compares five methods on a tiny GPT-2, in ``tmp_path / "runs" / "small"``."""
    return write_experiment(tmp_path, model_directories["gpt2"], data_files)
