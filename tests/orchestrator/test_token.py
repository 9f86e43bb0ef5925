"""A cluster started as cluster.yaml would: who has no token, or a wrong one, is not let in."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from runs import write_experiment

REPOSITORY = Path(__file__).parents[2]

TOKEN, WRONG = "0123456789abcdef" * 4, "fedcba9876543210" * 4

TAKES_A_TOKEN = "the cluster requires a token; set RAY_AUTH_MODE=token and put it into ~/.ray/auth_token"

START_TRIES = 3

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Of a cluster of one node all addresses may be loopback's."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass(frozen=True)
class Head:
    """A cluster of one node, and a home in which its token may be put."""

    address: str
    dashboard: str
    home: Path
    experiment: Path

    def run(self, token: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the program against the cluster, as somebody with this token in their home."""
        file = self.home / ".ray" / "auth_token"
        file.unlink(missing_ok=True)
        if token is not None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(token)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "orchestrator.run",
                self.experiment,
                "--dry-run",
                "--address",
                self.address,
            ],
            env={**environment, **LOOPBACK, "HOME": str(self.home), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def head(
    tmp_path_factory: pytest.TempPathFactory, model_directories: dict[str, Path], data_files: dict[str, Path]
) -> Iterator[Head]:
    place = tmp_path_factory.mktemp("cluster")
    experiment = write_experiment(place, model_directories["gpt2"], data_files, methods={"lora": {}})
    (place / "head" / ".ray").mkdir(parents=True)
    (place / "head" / ".ray" / "auth_token").write_text(TOKEN)
    (place / "visitor").mkdir()
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    start = config["head_start_ray_commands"][-1].removeprefix("ulimit -n 65536; ")
    mode, _, *command = shlex.split(start)
    assert command[:3] == ["ray", "start", "--head"]
    ours = re.compile("--(port|object-manager-port|autoscaling-config)=")
    kept = [part for part in command[3:] if not ours.match(part)]
    with contextlib.ExitStack() as stack:
        for number in range(START_TRIES):
            head = stack.enter_context(started(kept, mode, place, experiment, place / f"start-{number}.log"))
            if head is not None:
                break
        else:
            pytest.fail("the head ended while it started:\n" + (place / f"start-{number}.log").read_text())
        yield head


@contextlib.contextmanager
def started(options: list[str], mode: str, place: Path, experiment: Path, log: Path) -> Iterator[Head | None]:
    """Start the head, and end it in the end; it is None where the head ended by itself.

    Somebody else may take a port between its choice and its use.
    """
    gcs, dashboard = free_port(), free_port()
    temporary = f"/tmp/ray-head-{os.getpid()}"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options, "--block"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}"),
                *(f"--ray-client-server-port={free_port()}", "--num-cpus=1"),
                f"--dashboard-agent-listen-port={free_port()}",
            ],
            env={**os.environ, **dict([mode.split("=")]), **LOOPBACK, "HOME": str(place / "head")},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while (ended := process.poll()) is None and status(
            f"http://127.0.0.1:{dashboard}/api/version"
        ) is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        if ended is not None:
            yield None
            return
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", place / "visitor", experiment)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def status(address: str, **headers: str) -> int | None:
    """Return the status of a page, or None where nobody answers."""
    try:
        return int(urllib.request.urlopen(urllib.request.Request(address, headers=headers)).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize(
    ("token", "variables"),
    [(None, {}), (None, {"RAY_AUTH_MODE": "token"}), (WRONG, {"RAY_AUTH_MODE": "token"})],
    ids=["no token", "the mode alone", "a wrong token"],
)
def test_who_has_no_token_is_refused_with_what_to_do(
    head: Head, token: str | None, variables: dict[str, str]
) -> None:
    refused = head.run(token, **variables)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.removesuffix("\n") == f"--address {head.address}: {TAKES_A_TOKEN}"


def test_who_has_the_token_is_let_in(head: Head) -> None:
    done = head.run(TOKEN, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lora" in done.stdout


def test_the_dashboard_asks_for_the_token(head: Head) -> None:
    page = f"{head.dashboard}/api/version"
    assert status(page) == 401
    assert status(page, Authorization=f"Bearer {WRONG}") == 403
    assert status(page, Authorization=f"Bearer {TOKEN}") == 200
