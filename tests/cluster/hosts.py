"""Hosts of a cluster on one machine: namespaces joined by a bridge, each with its own sshd.

A host has its own network, name, processes, home directory, ``/tmp/ray`` and ``/dev/shm``. One directory is
seen by all of them, as a network file system would be; the checkout by none, only its virtual environment.
All lives in one process namespace whose first process reads a pipe from the tests: however they end, the
pipe closes and the kernel removes processes, networks and mounts.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
UNSHARE = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc")
BUILD = """set -e
    ip link add bridge type bridge
    ip link add one type veth peer name other
    mount -t tmpfs tmpfs /run"""
"""What hosts are made of."""

HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
"""The home directory, for ssh too, which does not ask $HOME."""

NETWORK = "10.77.0"
SSHD = """\
AuthorizedKeysFile {key}.pub
HostKey {key}
ListenAddress {address}
PermitRootLogin yes
PidFile none
SetEnv RAY_worker_niceness=0
StrictModes no
UsePAM no
"""


def missing() -> str | None:
    """Say what keeps this machine from having such hosts, if anything does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, to make network namespaces"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: apt-get install iproute2 openssh-server rsync)"
    tried = subprocess.run([*UNSHARE, "bash", "-c", BUILD], capture_output=True, text=True)
    return f"needs network namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """One set of namespaces, and commands that run in it.

    Arguments:
        start: command line of its first process, which ends with its standard input.
        home: what stands in for its home directory, made here.
    """

    def __init__(self, start: list[str], home: Path) -> None:
        home.mkdir(parents=True)
        self.home = home
        self.first = subprocess.Popen(start, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.pid = _first_inside(self.first)
        bin_directory = f"{sys.prefix}/bin"
        (home / ".bashrc").write_text(f"export PATH={bin_directory}:$PATH\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{bin_directory}:{os.environ['PATH']}"
        self.environment = {**kept, "PATH": path, "TMPDIR": str(HOME)}

    def run(self, command: str, timeout: float = 180, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command here."""
        line = ["nsenter", "-t", str(self.pid), "-a", "bash", "-c", f"cd; {command}"]
        done = subprocess.run(
            line,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command here."""
        line = ["nsenter", "-t", str(self.pid), "-a", "bash", "-c", f"cd; {command}"]
        return subprocess.Popen(
            line,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> None:
        """End all processes here at once, as a power cut would."""
        psutil.Process(self.pid).kill()
        self.first.wait(timeout=60)


class Site:
    """The user's desk and the hosts on its network.

    Arguments:
        directory: an empty one, for homes and keys and what all hosts share.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.ground = Machine([*UNSHARE, "cat"], directory / "ground")
        self.ground.run("set -e; ip link set lo up; ip link add bridge type bridge; ip link set bridge up")
        self.desk = self._place("desk", f"{NETWORK}.254", "exec cat", set())
        self.hosts: dict[str, Machine] = {}

    def add_host(self, number: int) -> str:
        """Add a host and return its address."""
        address, name = f"{NETWORK}.{number}", f"host{number}"
        config = self.directory / f"{name}.sshd"
        config.write_text(SSHD.format(key=self.key, address=address))
        sshd = f"exec {shutil.which('sshd')} -D -e -f {config} < /dev/null 2> {config}.log"
        self.hosts[address] = self._place(name, address, sshd, _checkouts())
        return address

    def _place(self, name: str, address: str, begin: str, hidden: set[Path]) -> Machine:
        """Put a machine on the network; ``begin`` becomes its first process."""
        into = ["nsenter", "-t", str(self.ground.pid)]
        first = ["bash", "-c", f"read; {begin}"]
        machine = Machine([*into, "-a", *UNSHARE, *first], self.directory / name)
        # In the tests' own process namespace `ip` knows the machine by its process.
        add = f"ip link add {name} type veth peer name eth0 netns {machine.pid}"
        subprocess.run([*into, "--net", *add.split()], check=True)
        subprocess.run([*into, "--net", *f"ip link set {name} master bridge up".split()], check=True)
        # The route leads nowhere, but tells Ray which address is this machine's.
        machine.run(f"""set -e
            {_own_files(machine.home, hidden)}
            mount -t tmpfs tmpfs /run
            mkdir /run/sshd
            hostname {name}
            ip link set lo up
            ip address add {address}/24 dev eth0
            ip link set eth0 up
            ip route add default dev eth0""")
        assert machine.first.stdin
        machine.first.stdin.write(b"\n")
        machine.first.stdin.flush()
        return machine

    def close(self) -> None:
        """Remove it all."""
        self.ground.stop()


def _first_inside(process: subprocess.Popen[bytes]) -> int:
    """Return the process that is the first of its namespace, started by ``unshare`` below a process."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            status = Path(f"/proc/{child.pid}/status").read_text()
            pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if pids[-1] == "1" and "unshare" not in child.name():
                return child.pid
        time.sleep(0.02)
    raise AssertionError("no namespaces after 20 seconds")


def _own_files(home: Path, hidden: set[Path]) -> str:
    """Return commands that give a machine its own home, Ray directory and shared memory.

    Arguments:
        home: what stands in for the home directory.
        hidden: directories to cover by empty ones, but for the Python that runs the tests.
    """
    covered = {HOME, *hidden}
    kept = [path for path in map(Path, {sys.prefix, sys.base_prefix}) if covered & set(path.parents)]
    aside = {path: home / f".aside{number}" for number, path in enumerate(kept)}
    return "\n".join(
        [
            *(f"mkdir {place}; mount --bind {path} {place}" for path, place in aside.items()),
            *(f"mount -t tmpfs tmpfs {path}" for path in hidden),
            f"mount --rbind {home} {HOME}",
            *(f"mkdir -p {path}; mount --bind {place} {path}" for path, place in aside.items()),
            "mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray",
            "mount -t tmpfs -o size=1g tmpfs /dev/shm",
        ]
    )


def _checkouts() -> set[Path]:
    """Return the checkout, and the one the virtual environment is in, if that is another."""
    beside = Path(sys.prefix).parent
    return {REPOSITORY, beside} if (beside / "orchestrator").is_dir() else {REPOSITORY}
