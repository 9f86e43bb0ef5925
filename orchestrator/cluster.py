"""The Ray cluster: this machine, or the one that --address or RAY_ADDRESS names."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address_or_die, find_node_ids
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError, RpcError

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.nodes import Node, alive_nodes, node_types, trials_at_once

CONNECT_SECONDS = 10
"""How long an address may take to answer."""

ADDRESSES = (
    "expected 'auto' or HOST:PORT on a node of a running cluster, or ray://HOST:PORT from elsewhere"
    " (Ray's client port, 10001)"
)

GIVE_TOKEN = "set RAY_AUTH_MODE=token and put it into ~/.ray/auth_token"

WORKER_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # glibc 2.36 passes on only the first of several
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
}
"""Variables that workers' libraries read as they start; those that are set already are kept.

By default, the C library (glibc's manual, 'Memory Allocation Tunables') returns a step's memory to the kernel
and requests it again, page by page, at the next step; with these it keeps the memory, in huge pages, until
the trial ends. oneDNN by default caches 1,024 prepared matrix products, which batches of many lengths exceed.
docs/performance.md says what the variables are worth.
"""

PACKAGES = ("orchestrator", "results", "search_spaces", "trainables")
"""The project's packages that workers need."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that trials run on."""

    nodes: tuple[Node, ...]
    is_joined: bool  # existed before the run, and may gain or lose nodes during it
    dashboard: str | None  # address of the Ray dashboard's page
    to_come: tuple[Node, ...] = ()  # all nodes that the autoscaler may start, those that are there included

    def slots(self, experiment: Experiment) -> int:
        """Return how many trials run at once on the present nodes."""
        return trials_at_once(self.nodes, experiment.resources)

    def unused(self, experiment: Experiment) -> str | None:
        """Return a message if there are GPUs and no trial asks for one."""
        gpus = sum(node.gpus for node in self.nodes)
        if not gpus or experiment.resources.gpus_per_trial:
            return None
        return f"trials train on CPUs, and {gpus:g} GPUs are not used; resources.gpus_per_trial: 1 uses them"

    def limit(self, experiment: Experiment) -> int | None:
        """Return the most trials at once; None if that depends on the nodes, which come and go."""
        return None if self.is_joined else self.slots(experiment)


def connect(address: str | None) -> Cluster:
    """Join the cluster at an address or the one RAY_ADDRESS names, or start Ray on this machine.

    Arguments:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``, as ``ray.init`` takes it.

    Raises:
        ExperimentError: if it cannot be joined.
    """
    where, address = _where(address)
    # Workers' output ends up in the run's log, without colors.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if address is None:
        # Keep every port on loopback, as Ray does on macOS and Windows; on Linux, others could connect.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ.update(_worker_environment())
        # Ray would start a process per core in advance, none of which has the variables of Tune's workers.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # 'local' starts a new cluster even if one runs here already, as on a cluster's head.
        context = ray.init("local", log_to_driver=True, logging_level=logging.ERROR)
    else:
        _check_address(where, address)
        try:
            _check_token(address)
            context = _join(address)
        except Exception as error:
            raise ExperimentError(f"{where}: {_reason(error)}") from error
    dashboard = getattr(context, "dashboard_url", None)
    return Cluster(
        nodes=alive_nodes(),
        is_joined=address is not None,
        dashboard=f"http://{dashboard}" if dashboard else None,
        to_come=node_types() if address is not None else (),
    )


def _join(address: str) -> Any:
    join = partial(
        ray.init, address, runtime_env=_runtime_env(), log_to_driver=True, logging_level=logging.ERROR
    )
    try:
        return join()
    except ConnectionAbortedError:
        # For a ray:// client, Ray 2.60 forks a process while gRPC's threads run. It may die at once: one in
        # fifteen did, unless GRPC_ENABLE_FORK_SUPPORT=0 was set, as in our cluster files.
        return join()


def names_cluster(address: str | None) -> bool:
    """Say whether a run joins a cluster, whose resources are unknown until then."""
    return _where(address)[1] is not None


def _where(address: str | None) -> tuple[str, str | None]:
    """Return how messages name the source of an address, and the address, if any."""
    if address is not None:
        return f"--address {address}", address
    variable = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS={variable}", variable or None


def _check_address(where: str, address: str) -> None:
    """Refuse an address at once if there is nothing to join; Ray would retry for a minute or more."""
    if address != "auto":
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or not port or parts.scheme not in ("", "ray"):
            raise ExperimentError(f"{where}: not an address; {ADDRESSES}")
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise ExperimentError(f"{where}: nothing answers there: {error}; {ADDRESSES}") from None
    if "://" not in address and not find_node_ids():
        raise ExperimentError(f"{where}: this machine is not a node of a running Ray cluster; {ADDRESSES}")


def _check_token(address: str) -> None:
    """Check at once that the cluster lets this program in; Ray would retry for a minute or more.

    Raises:
        AuthenticationError: if it does not.
    """
    if "://" not in address:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        with suppress(RpcError):  # from a cluster that is slow to answer, which Ray waits for
            GcsClient(address=canonicalize_bootstrap_address_or_die(address))


def _runtime_env() -> dict[str, Any]:
    """Return the runtime environment that gives workers the project's code and their variables."""
    environment = {"env_vars": _worker_environment()}
    if _job_working_dir():
        return environment
    everything_but = ["/*", "!.", *(f"!/{name}" for name in PACKAGES), "__pycache__"]
    return {"working_dir": str(Path(__file__).parents[1]), "excludes": everything_but, **environment}


def _worker_environment() -> dict[str, str]:
    return {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in os.environ}


def _job_working_dir() -> str | None:
    """Return the working directory that was uploaded with this job, if it is a submitted one."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    working_dir: str | None = (job.get("runtime_env") or {}).get("working_dir")
    return working_dir


def _reason(error: Exception) -> str:
    """Say in one line why a cluster cannot be joined."""
    text = str(error).strip()
    if "Version mismatch" in text:
        versions = re.findall(r"(Ray|Python): (\S+)", text)
        there, here = (" and ".join(map(" ".join, some)) for some in (versions[:2], versions[2:]))
        return f"the cluster runs {there}, this program {here}; expected the same on both sides"
    if isinstance(error, AuthenticationError):
        return f"the cluster requires a token; {GIVE_TOKEN}"
    if text == "ray client connection timeout":  # all that the client port tells a program without a token
        return f"{text}; if the cluster requires a token, {GIVE_TOKEN}; else {ADDRESSES}"
    if text.startswith("Initialization failure from server"):  # with the server's traceback
        return f"it could not serve this program: {text.splitlines()[-1]}; try again"
    return f"{(text or type(error).__name__).splitlines()[0]}; {ADDRESSES}"
