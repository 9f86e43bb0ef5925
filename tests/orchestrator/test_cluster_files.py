"""The files that clusters are made from, against the installed Ray and against the project."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.docker import validate_docker_config
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.loading import load_experiment
from orchestrator.run import make_parser

REPOSITORY = Path(__file__).parents[2]
CLUSTERS = {
    "aws": REPOSITORY / "cluster.yaml",
    "gcp": REPOSITORY / "clusters" / "gcp.yaml",
    "local": REPOSITORY / "clusters" / "local.yaml",
}
PINNED = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
IMAGE = re.compile(r"rayproject/ray:(?P<ray>[\d.]+)-py(?P<python>3\d+)-gpu")


def read(provider: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(CLUSTERS[provider].read_text())
    return values


def check_image(image: str) -> None:
    """Check that an image has the Ray that is pinned and a Python that the project runs on."""
    match = IMAGE.fullmatch(image)
    assert match
    assert match["ray"] == PINNED["ray"]
    assert f"3.{match['python'][1:]}" == PROJECT["project"]["requires-python"].removeprefix(">=")


@pytest.mark.parametrize("provider", CLUSTERS)
def test_ray_takes_it(provider: str) -> None:
    prepared = prepare_config(read(provider))
    validate_config(prepared)
    validate_docker_config(prepared)
    assert prepared["provider"]["type"] == provider
    # Defaults of the provider are all replaced: they would install another Ray and show the dashboard to all.
    commands = [line for key, lines in prepared.items() if key.endswith("_commands") for line in lines]
    assert not [line for line in commands if "wheels" in line or "0.0.0.0" in line]


@pytest.mark.parametrize("provider", CLUSTERS)
def test_it_brings_the_project_and_its_pinned_dependencies(provider: str) -> None:
    config = read(provider)
    mounts = {remote: local for remote, local in config["file_mounts"].items() if "auth_token" not in remote}
    assert all((REPOSITORY / local).exists() for local in mounts.values())
    assert all(remote.endswith(f"/finetune-comparison/{local}") for remote, local in mounts.items())
    assert PACKAGES | {"constraints.txt", "pyproject.toml", PROJECT["project"]["readme"]} <= set(
        mounts.values()
    )
    [install] = [line for line in config["setup_commands"] if "pip install" in line]
    assert install.endswith("-c ~/finetune-comparison/constraints.txt -e ~/finetune-comparison")
    if provider != "local":
        check_image(config["docker"]["image"])


@pytest.mark.parametrize("provider", CLUSTERS)
def test_ray_is_started_with_its_dashboard_on_loopback_and_asks_for_a_token(provider: str) -> None:
    config = read(provider)
    starts = {
        part: next(line for line in config[f"{part}_start_ray_commands"] if "ray start" in line)
        for part in ("head", "worker")
    }
    assert "--dashboard-host=127.0.0.1" in starts["head"]
    assert "GRPC_ENABLE_FORK_SUPPORT=0" in starts["head"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts.values())
    [token] = [remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert token.endswith("/.ray/auth_token")
    assert any("export RAY_AUTH_MODE=token" in line for line in config["setup_commands"])


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_workers_are_spot_and_the_head_is_not(provider: str) -> None:
    config = read(provider)
    assert config["head_node_type"] == "head"
    nodes = {name: kind["node_config"] for name, kind in config["available_node_types"].items()}
    spot = {"aws": "{'MarketType': 'spot'}", "gcp": "'provisioningModel': 'SPOT'"}[provider]
    assert spot in str(nodes["worker"])
    assert spot not in str(nodes["head"])
    assert config["available_node_types"]["worker"]["max_workers"] == config["max_workers"]
    assert config["available_node_types"]["worker"].get("min_workers") == 0
    # What initialization commands mount on a host is in its container too.
    assert "-v /mnt/shared:/mnt/shared" in config["docker"]["run_options"]
    assert any(
        line.endswith(":/ /mnt/shared") or ":/shared /mnt/shared" in line
        for line in config["initialization_commands"]
    )


def test_kuberay_rayjob() -> None:
    claim, job = yaml.safe_load_all((REPOSITORY / "clusters" / "kuberay-rayjob.yaml").read_text())
    assert (claim["kind"], job["kind"], job["apiVersion"]) == ("PersistentVolumeClaim", "RayJob", "ray.io/v1")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == PINNED["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True

    # The entry point is a command line of ours, with settings that are right.
    python, flag, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "orchestrator.run")
    options = make_parser().parse_args(arguments)
    file = REPOSITORY / options.experiment.relative_to("/home/ray/finetune-comparison")
    experiment = load_experiment(file, options.overrides)

    [workers] = cluster["workerGroupSpecs"]
    pods = {"ray-head": cluster["headGroupSpec"], "ray-worker": workers}
    for name, group in pods.items():
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["name"] == name
        assert container["image"].endswith(f"/finetune-comparison:{PROJECT['project']['version']}")
        [mount], [volume] = container["volumeMounts"], pod["volumes"]
        assert experiment.run_directory.is_relative_to(mount["mountPath"])
        assert mount["name"] == volume["name"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]
    [container] = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= experiment.resources.gpus_per_trial


def test_the_image_of_the_rayjob() -> None:
    lines = (REPOSITORY / "clusters" / "Dockerfile").read_text().splitlines()
    [base] = [line.removeprefix("FROM ") for line in lines if line.startswith("FROM ")]
    check_image(base)
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]}
    assert PACKAGES | {"constraints.txt", "pyproject.toml", "README.md", "experiments"} == copied
    assert all((REPOSITORY / name).exists() for name in copied)
    assert "RUN pip install --no-cache-dir -c constraints.txt -e ." in lines


def test_commands_of_the_documentation_are_right() -> None:
    text = (REPOSITORY / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python -m orchestrator\.run ([^'`\n]+)", text)
    assert len(commands) > 4
    for command in commands:
        options = make_parser().parse_args(shlex.split(command))
        if options.experiment == Path("experiments/sst2.yaml"):
            load_experiment(REPOSITORY / options.experiment, options.overrides)
        else:
            assert str(options.experiment) == "FILE"
    assert all(
        (REPOSITORY / name).is_file()
        for name in re.findall(r"clusters/[\w-]+\.yaml|clusters/Dockerfile", text)
    )
