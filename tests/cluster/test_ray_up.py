"""What a user does with machines of their own, from `ray up` to `ray down`, on hosts made of namespaces."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hosts import REPOSITORY, Site, missing

from results import load

pytestmark = pytest.mark.cluster

NODE = "ray start --num-cpus=1 --object-store-memory=100000000"


class Cluster:
    """A site, a copy of clusters/local.yaml for its hosts, and experiments for it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.file = site.directory / "cluster.yaml"
        self.head, *self.workers = [site.add_host(number) for number in (1, 2, 3)]
        self.write()

    def write(self) -> None:
        """Edit what clusters/local.yaml asks the user to choose; the virtual environment is there already."""
        config = yaml.safe_load((REPOSITORY / "clusters" / "local.yaml").read_text())
        config["provider"].update(head_ip=self.head, worker_ips=self.workers)
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.site.key)}
        config["setup_commands"] = [line for line in config["setup_commands"] if "RAY_AUTH_MODE" in line]
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[key] = [line.replace("ray start", NODE) for line in config[key]]
        self.file.write_text(yaml.safe_dump(config))

    def ray(self, command: str, timeout: float = 60) -> str:
        """Run a command of Ray's at the desk, in the checkout, and return what it prints."""
        done = self.site.desk.run(f"cd {REPOSITORY}; ray {command}", timeout=timeout)
        return done.stdout

    def on_head(self, command: str, timeout: float = 60) -> str:
        """Run a command on the head, as a user would."""
        return self.ray(f"exec {self.file} '{command}'", timeout)


@pytest.fixture(scope="module")
def cluster(model_directories: dict[str, Path], data_files: dict[str, Path]) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir="/var/tmp"))
    site = Site(directory)
    try:
        cluster = Cluster(site)
        _give_to_head(cluster, model_directories["gpt2"], data_files)
        site.desk.run("ray get-auth-token --generate")
        cluster.ray(f"up -y {cluster.file}", timeout=120)
        yield cluster
    finally:
        site.close()
        shutil.rmtree(directory)


def _give_to_head(cluster: Cluster, model: Path, data: dict[str, Path]) -> None:
    """Put model, data and experiment where no other host sees them."""
    head, passing = cluster.site.hosts[cluster.head], cluster.site.directory / "passing"
    shutil.copytree(model, passing / "model")
    for file in data.values():
        shutil.copy(file, passing)
    values = {
        "name": "small",
        "model": {"path": "model"},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            **{split: file.name for split, file in data.items()},
        },
        "training": {"epochs": 60, "batch_size": 4, "evaluations_per_epoch": 1},
        "search": {"trials": 4, "early_stopping": "none"},
        "confirm": {"seeds": 1},
        "methods": {"full": {}, "lora": {"rank": [2, 4]}},
        "storage": str(cluster.site.shared / "runs"),
    }
    (passing / "small.yaml").write_text(json.dumps(values))
    head.run(f"set -e; mkdir only; mount -t tmpfs tmpfs only; cp -r {passing}/* only")
    shutil.rmtree(passing)


def wait_for(what: Callable[[], object], seconds: float = 90) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)


def check_whole(directory: Path, trials: int) -> pd.DataFrame:
    """Check a result set, and return its trials."""
    results = load(directory)
    assert len(results.trials) == trials
    assert not set(results.trials.status) & {"running", "interrupted"}
    kept = {f"checkpoints/{path.name}" for path in (directory / "checkpoints").iterdir()}
    assert kept == set(results.checkpoints.path)
    ended = results.metrics.groupby("trial_id").evaluation.max()
    assert (results.trials.set_index("trial_id").evaluations.reindex(ended.index) == ended).all()
    assert (directory / "report" / "index.html").is_file()
    return results.trials


def test_three_nodes_are_up(cluster: Cluster) -> None:
    wait_for(lambda: "3 local.cluster.node" in cluster.on_head("ray status"))
    listening = cluster.site.hosts[cluster.head].run("ss -Hltn sport = :8265").stdout
    assert "127.0.0.1:8265" in listening
    # Whoever has no token is refused.
    refused = cluster.site.hosts[cluster.head].run(
        "curl -s -o /dev/null -w %{http_code} 127.0.0.1:8265/api/version"
    )
    assert refused.stdout == "401"


def test_a_run_on_the_head_uses_all_nodes(cluster: Cluster) -> None:
    printed = cluster.on_head(
        "cd ~/only && PYTHONPATH=~/finetune-comparison python -m orchestrator.run small.yaml --address auto",
        180,
    )
    directory = cluster.site.shared / "runs" / "small"
    trials = check_whole(directory, 10)
    assert set(trials.status) == {"completed"}
    assert set(trials.node) == {"host1", "host2", "host3"}
    assert f'pandas.read_parquet("{directory}/trials.parquet")' in printed
