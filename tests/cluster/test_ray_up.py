"""What a user does with machines of their own, from `ray up` to `ray down`, on hosts made of namespaces."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hosts import HOME, NETWORK, REPOSITORY, Site, missing

from results import load

pytestmark = pytest.mark.cluster

ONLY = HOME / "only"
"""Where the head has what no other host has."""

SHORT = ("--methods", "full", "--set", "training.epochs=2", "--set", "confirm.seeds=0")
"""Two trials that take no time."""

NODE = "ray start --num-cpus=1 --object-store-memory=100000000"


class Cluster:
    """A site, a copy of clusters/local.yaml for its hosts, and experiments for it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.file = site.directory / "cluster.yaml"
        self.head, *self.workers = [site.add_host(number) for number in (1, 2, 3)]
        self._write()

    def _write(self) -> None:
        """Edit what clusters/local.yaml asks the user to choose; the virtual environment is there already.

        A fourth machine is named, and switched on later.
        """
        config = yaml.safe_load((REPOSITORY / "clusters" / "local.yaml").read_text())
        config["provider"].update(head_ip=self.head, worker_ips=[*self.workers, f"{NETWORK}.4"])
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.site.key)}
        config["setup_commands"] = [line for line in config["setup_commands"] if "RAY_AUTH_MODE" in line]
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[key] = [line.replace("ray start", NODE) for line in config[key]]
        self.file.write_text(yaml.safe_dump(config))

    def ray(self, command: str, timeout: float = 180) -> str:
        """Run a command of Ray's at the desk, in the checkout, and return what it prints."""
        done = self.site.desk.run(f"cd {REPOSITORY}; ray {command}", timeout=timeout)
        return done.stdout

    def run_at_desk(self, arguments: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the program at the desk."""
        program = f"PYTHONPATH={REPOSITORY} RAY_AUTH_MODE=token python -m orchestrator.run"
        return self.site.desk.run(f"{program} {' '.join(arguments)}", timeout=300, check=check)

    def on_head(self, command: str, timeout: float = 180) -> str:
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
        cluster.ray(f"up -y {cluster.file}", timeout=300)
        yield cluster
    finally:
        site.close()
        shutil.rmtree(directory)


def _give_to_head(cluster: Cluster, model: Path, data: dict[str, Path]) -> None:
    """Put model and data where no other host sees them, and the experiment also on the desk."""
    head, passing = cluster.site.hosts[cluster.head], cluster.site.directory / "passing"
    shutil.copytree(model, passing / "model")
    for file in data.values():
        shutil.copy(file, passing)
    values = {
        "name": "small",
        "model": {"path": str(ONLY / "model")},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            **{split: str(ONLY / file.name) for split, file in data.items()},
        },
        "training": {"epochs": 80, "batch_size": 4, "evaluations_per_epoch": 1},
        "search": {"trials": 2, "early_stopping": "none"},
        "confirm": {"seeds": 1},
        "methods": {"full": {}, "lora": {"rank": [2, 4]}},
        "storage": str(cluster.site.shared / "runs"),
    }
    for place in (passing, cluster.site.desk.home):
        (place / "small.yaml").write_text(json.dumps(values))
    head.run(f"set -e; mkdir {ONLY}; mount -t tmpfs tmpfs {ONLY}; cp -r {passing}/* {ONLY}")
    shutil.rmtree(passing)


@contextmanager
def submitted(cluster: Cluster, name: str, *settings: str) -> Iterator[subprocess.Popen[str]]:
    """Submit a run as a job, as a user does through the dashboard's tunnel."""
    desk = cluster.site.desk
    tunnel = desk.start(f"cd {REPOSITORY}; exec ray dashboard {cluster.file}")
    wait_for(lambda: not desk.run("curl -s 127.0.0.1:8265", check=False).returncode)
    options = " ".join(f"--set '{setting}'" for setting in settings)
    yield desk.start(
        f"cd {REPOSITORY}; RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir ."
        f" -- python -m orchestrator.run {ONLY}/small.yaml --name {name} {options}"
    )
    tunnel.terminate()


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
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


def nodes_of(directory: Path) -> set[str]:
    """Return the hosts whose trials have reported so far."""
    rows = [json.loads(file.read_text())["trials"][0] for file in directory.glob("journal/*.json")]
    return {row["node"] for row in rows if row["node"]}


def test_three_nodes_are_up_and_only_who_has_the_token_is_let_in(cluster: Cluster) -> None:
    wait_for(lambda: " 3 local.cluster.node" in cluster.on_head("ray status"))
    head = cluster.site.hosts[cluster.head]
    assert "127.0.0.1:8265" in head.run("ss -Hltn sport = :8265").stdout
    refused = head.run("curl -s -o /dev/null -w %{http_code} 127.0.0.1:8265/api/version")
    assert refused.stdout == "401"


REFUSED = {
    "nothing there": (["--address", "10.77.0.99:6379"], "nothing answers there"),
    "not a node": (["--address", "10.77.0.1:6379"], "this machine is not a node of a running Ray cluster"),
}


def test_a_cluster_that_cannot_be_joined_is_one_message(cluster: Cluster) -> None:
    for arguments, message in REFUSED.values():
        done = cluster.run_at_desk(arguments, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_another_version_is_one_message(cluster: Cluster) -> None:
    old = 'import sys, ray; ray.__version__ = "2.9.0"; from orchestrator.run import main; sys.exit(main())'
    expected = "the cluster runs Ray 2.60.0 and Python"
    at_desk = cluster.site.desk.run(
        f"cd {REPOSITORY}; RAY_AUTH_MODE=token python -c '{old}' --address ray://{cluster.head}:10001",
        check=False,
    )
    on_head = cluster.site.hosts[cluster.head].run(
        f"source .bashrc; cd finetune-comparison; python -c '{old}' {ONLY}/small.yaml --address auto",
        check=False,
    )
    for done in (at_desk, on_head):
        assert done.returncode == 2, done.stdout + done.stderr
        assert expected in done.stderr
        assert "Ray 2.9.0" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_storage_that_not_all_nodes_see_is_refused(cluster: Cluster) -> None:
    command = f"python -m orchestrator.run {ONLY}/small.yaml --address auto --set storage={ONLY}/runs"
    done = cluster.site.hosts[cluster.head].run(
        f"source .bashrc; cd finetune-comparison; {command}", check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is not seen by 10.77.0.2, 10.77.0.3" in done.stderr


def test_a_run_on_the_head(cluster: Cluster) -> None:
    program = f"python -m orchestrator.run {ONLY}/small.yaml --address auto {' '.join(SHORT)}"
    printed = cluster.on_head(f"cd finetune-comparison && {program}", 600)
    directory = cluster.site.shared / "runs" / "small"
    trials = check_whole(directory, 2)
    assert set(trials.status) == {"completed"}
    assert f'pandas.read_parquet("{directory}/trials.parquet")' in printed


def test_a_run_from_outside(cluster: Cluster) -> None:
    done = cluster.run_at_desk(
        ["small.yaml", "--address", f"ray://{cluster.head}:10001", "--name", "outside", *SHORT]
    )
    directory = cluster.site.shared / "runs" / "outside"
    trials = check_whole(directory, 2)
    assert set(trials.status) == {"completed"}
    assert f'pandas.read_parquet("{directory}/trials.parquet")' in done.stdout


def test_a_job_uses_all_hosts(cluster: Cluster) -> None:
    """No host but the head has the model, the data or the checkout."""
    directory = cluster.site.shared / "runs" / "job"
    # Longer than a worker takes to start: else the last trial would go to a node that has one already.
    settings = ("methods={full: {}}", "search.trials=3", "confirm.seeds=0", "training.epochs=200")
    with submitted(cluster, "job", *settings) as job:
        printed, _ = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    trials = check_whole(directory, 3)
    assert set(trials.status) == {"completed"}
    assert set(trials.node) == {"host1", "host2", "host3"}


def test_a_host_that_joins_is_used_and_one_that_leaves_loses_nothing(cluster: Cluster) -> None:
    directory = cluster.site.shared / "runs" / "long"
    # Trials that are longer than a host takes to join.
    with submitted(cluster, "long", "search.trials=4", "training.epochs=200") as job:
        wait_for(lambda: nodes_of(directory) == {"host1", "host2", "host3"} or job.poll() is not None)
        assert job.poll() is None, job.communicate()
        cluster.site.add_host(4)
        wait_for(lambda: "host4" in nodes_of(directory))
        cluster.site.hosts[cluster.workers[1]].stop()
        printed, _ = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    trials = check_whole(directory, 10)
    # What ran on host3 went on elsewhere from its last evaluation.
    assert set(trials.status) == {"completed"}
    assert trials.retries.sum() <= 1
    assert "host3" not in set(trials.node[trials.retries > 0])


def test_ray_down_ends_it(cluster: Cluster) -> None:
    """On the head at once; workers end when they have missed it for a minute, which is not waited for."""
    cluster.ray(f"down -y {cluster.file}", timeout=300)
    assert not cluster.site.hosts[cluster.head].run("pgrep 'raylet|gcs_server'", check=False).stdout
