"""A run that logs everywhere, beside secrets: loggers have its numbers, and nothing it leaves a secret."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import finish, start, write_experiment

SECRETS = {
    name: f"planted-{name.lower()}-0123456789"
    for name in (
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY", "RAY_AUTH_TOKEN", "SECRET"),
    )
}

HAS_MLFLOW = find_spec("mlflow") is not None


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    directory: Path
    temporary: Path  # Ray's
    printed: str
    listening: frozenset[str]  # addresses at which its processes listened


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, model_directories: dict[str, Path], data_files: dict[str, Path]
) -> Iterator[Run]:
    place = tmp_path_factory.mktemp("beside-secrets")
    mlflow = {"mlflow": f"sqlite:///{place}/runs/mlflow.db"} if HAS_MLFLOW else {}
    experiment = write_experiment(
        place,
        model_directories["gpt2"],
        data_files,
        training={"epochs": 1, "batch_size": 8},
        search={"trials": 1},
        confirm={"seeds": 1},
        methods={"head": {}, "wild": {"kind": "full", "learning_rate": 1e30}},
        logging={"tensorboard": True, **mlflow},
    )
    (place / "runs").mkdir()
    temporary = Path(f"/tmp/ray-{os.getpid()}")  # short: it has sockets
    of_ray = {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(temporary)}
    process = start(experiment, environment={**SECRETS, **of_ray})
    listening: set[str] = set()
    while process.poll() is None:
        listening |= _listening(process.pid)
        time.sleep(0.3)
    printed = "".join(process.communicate())
    assert process.returncode == 0, printed
    assert "logging." not in printed
    yield Run(place / "runs" / "small", temporary, printed, frozenset(listening))
    shutil.rmtree(temporary)


def _listening(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(psutil.Error):
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                connections = one.net_connections("inet")
                found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


TRIALS = ["head-000", "head-seed0", "wild-000"]
NUMBERS = ("validation_accuracy", "validation_loss", "train_loss", "peak_memory_bytes", "train_seconds")


def curve(run: Run, trial: str, name: str) -> dict[int, Any]:
    rows = pd.read_parquet(run.directory / "metrics.parquet").set_index("trial_id").loc[[trial]]
    return dict(zip(rows.step, rows[name], strict=True))


def test_tensorboard_has_the_curves(run: Run) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    directory = run.directory / "tensorboard"
    assert sorted(path.name for path in directory.iterdir()) == TRIALS
    events = accumulator.EventAccumulator(str(directory / "head-000")).Reload()
    for name in NUMBERS:
        logged = {event.step: event.value for event in events.Scalars(f"ray/tune/{name}")}
        assert logged == pytest.approx(curve(run, "head-000", name), rel=1e-6)  # of float32
    confirmed = accumulator.EventAccumulator(str(directory / "head-seed0")).Reload()
    assert len(confirmed.Scalars("ray/tune/test_accuracy")) == 1


def test_mlflow_has_the_curves_the_hyperparameters_and_what_became_of_trials(run: Run) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.directory.parent}/mlflow.db")
    tracked = client.get_experiment_by_name("small")
    runs = {one.info.run_name: one for one in client.search_runs([tracked.experiment_id])}
    assert {name: one.info.status for name, one in runs.items()} == {
        **dict.fromkeys(TRIALS, "FINISHED"),
        "wild-000": "FAILED",
    }
    parameters = runs["head-000"].data.params
    assert parameters.keys() == {"method", "phase", "seed", "learning_rate"}
    assert float(parameters["learning_rate"]) == 1e-3
    for name in NUMBERS:
        history = client.get_metric_history(runs["head-000"].info.run_id, name)
        assert {one.step: one.value for one in history} == curve(run, "head-000", name)


def shown(text: bytes) -> list[str]:
    return [name for name, value in SECRETS.items() if value.encode() in text]


def test_no_file_of_a_run_has_a_secret(run: Run) -> None:
    files = [file for file in run.directory.parent.rglob("*") if file.is_file()]
    kinds = {file.suffix for file in files}
    assert {".json", ".parquet", ".txt", ".html", ".safetensors", ".journal"} <= kinds
    assert (".db" in kinds) == HAS_MLFLOW
    assert any("tfevents" in file.name for file in files)
    assert any(file.is_relative_to(run.directory / "ray") for file in files)
    assert {str(file): shown(file.read_bytes()) for file in files if shown(file.read_bytes())} == {}


def test_no_column_of_a_table_has_a_secret(run: Run) -> None:
    tables = {file.name: pq.read_table(file) for file in run.directory.glob("*.parquet")}
    assert set(tables) == {"trials.parquet", "metrics.parquet", "checkpoints.parquet", "predictions.parquet"}
    for name, table in tables.items():
        assert not shown(str(table.to_pydict()).encode()), name
        assert not shown(str(table.schema).encode()), name
    assert "small" in tables["trials.parquet"]["settings"][0].as_py()


def test_no_line_of_the_terminal_has_a_secret(run: Run) -> None:
    assert "report: " in run.printed
    assert not shown(run.printed.encode())


def test_no_log_of_ray_has_a_secret(run: Run) -> None:
    logs = [file for file in run.temporary.rglob("*") if file.is_file()]
    assert any(file.name.startswith("raylet") for file in logs)
    assert {str(file): shown(file.read_bytes()) for file in logs if shown(file.read_bytes())} == {}


PICKLES = ("tuner.pkl", "trainable.pkl", "searcher-state-1.pkl", "search_gen_state.pkl", ".tune_metadata")

READ = """
import sys
classes = []
sys.addaudithook(lambda event, about: classes.append(about) if event == "pickle.find_class" else None)
from results import load
from results.report.__main__ import main as report
from results.show import main as show
assert len(load(sys.argv[1]).trials)
assert show([sys.argv[1]]) == report([sys.argv[1]]) == 0
assert not classes, classes
"""


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self._file,)


def test_pickles_in_a_run_directory_are_not_read(run: Run, tmp_path: Path) -> None:
    """Ray's own state is pickled; a result set that somebody sent may hold any."""
    directory, ran = tmp_path / "small", tmp_path / "ran"
    shutil.copytree(run.directory, directory)
    evil = pickle.dumps(Malicious(ran))
    places = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    files = [
        file for file in directory.rglob("*") if file.is_file() and file.is_relative_to(directory / "ray")
    ]
    for file in (*files, *(place / name for place in places for name in PICKLES)):
        file.write_bytes(evil)
    table = pq.read_table(directory / "metrics.parquet")
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    step = pa.field("step", table["step"].type, metadata=extension)
    table = table.set_column(table.column_names.index("step"), step, table["step"])
    pq.write_table(table, directory / "metrics.parquet")

    finish(start(directory, program=["-c", READ]))
    assert "3 trials are done" in finish(start("--resume", directory, "--dry-run"))
    assert not ran.exists()
    pickle.loads(evil)
    assert ran.exists(), "what was planted would not have run"


def test_every_port_is_on_loopback(run: Run) -> None:
    addresses = [ipaddress.ip_address(one) for one in run.listening]
    assert addresses
    mapped = [getattr(one, "ipv4_mapped", None) or one for one in addresses]
    assert [str(one) for one in mapped if not one.is_loopback] == []
