"""What every node must see: where checkpoints are written, and where the model's own code is."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.experiment import Experiment
from results.remote import RemoteDirectory, StorageError
from trainables.errors import InputError

ANSWER_SECONDS = 60
"""How long nodes may take to say whether they see a path."""

SHARED_STORAGE = "set storage to a directory that all nodes share (EFS, NFS), or to a URI (s3://bucket/runs)"

WORKING_DIRECTORIES = "working_dir_files"
"""The directory in which Ray unpacks the working directories of jobs on a node."""


def sharing_problems(experiment: Experiment) -> list[InputError]:
    """Return which nodes do not see the storage, where workers write checkpoints, or a model's own code."""
    problems = _unwritable(experiment.storage) if experiment.uri else _unseen(experiment.storage)
    model = Path(experiment.model.path).expanduser().absolute()
    if experiment.model.trust_remote_code and model.is_dir() and (blind := _nodes_without(model)):
        fault = f"{model} has Python code that each node reads, and is not seen by {', '.join(blind)}"
        problems.append(InputError("model.path", fault))
    return problems


def _unwritable(uri: str) -> list[InputError]:
    """Return which nodes cannot write to a URI, and why."""
    return [
        InputError(
            "storage",
            f"{address}: {trouble or 'does not answer'}; each node needs access of its own, such as a role"
            " of the machine, and the packages that the URI requires",
        )
        for address, trouble in _on_each_node(_trouble_with, uri).items()
        if trouble != ""
    ]


def _unseen(directory: str) -> list[InputError]:
    """Return which nodes do not see a directory."""
    storage = Path(directory).expanduser().absolute()
    if WORKING_DIRECTORIES in storage.parts:
        fault = f"{storage} is in a job's own directory, which Ray removes; {SHARED_STORAGE}"
        return [InputError("storage", fault)]
    storage.mkdir(parents=True, exist_ok=True)
    token = storage / f".seen-{uuid.uuid4().hex}"
    token.touch()
    try:
        blind = _nodes_without(token)
    finally:
        token.unlink()
    return (
        [InputError("storage", f"{storage} is not seen by {', '.join(blind)}; {SHARED_STORAGE}")]
        if blind
        else []
    )


def _nodes_without(path: Path) -> list[str]:
    """Return the addresses of the nodes on which a path does not exist."""
    return [node for node, is_there in _on_each_node(_exists, str(path)).items() if not is_there]


def _on_each_node(task: Any, argument: str) -> dict[str, Any]:
    """Return a task's result on every node, by address; None for a node that does not answer."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [task.options(scheduling_strategy=one).remote(argument) for one in on]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
    found = {
        node["NodeManagerAddress"]: ray.get(answer) if answer in ready else None
        for node, answer in zip(nodes, answers, strict=True)
    }
    return dict(sorted(found.items()))


@ray.remote(num_cpus=0, max_retries=0)
def _exists(path: str) -> bool:
    return Path(path).exists()


@ray.remote(num_cpus=0, max_retries=0)
def _trouble_with(uri: str) -> str:
    """Return why this node cannot write to a URI; an empty text if it can."""
    try:
        RemoteDirectory(uri).probe()
    except StorageError as error:
        return str(error)
    return ""


def check_directory(directory: Path) -> None:
    """Refuse to train on a node, such as one that joined during the run, whose files nobody would see.

    Raises:
        FileNotFoundError: if this node does not see the run directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not seen by {socket.gethostname()}; {SHARED_STORAGE}")
