"""Runs started from outside their cluster (``ray://``): the command runs on the head and prints here."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster import connect
from orchestrator.errors import ExperimentError


def run_on_head(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Run a command line on the head of the cluster that it names and return the exit status.

    The experiment's file is sent along. Everything else it names is the head's: data, models, storage.

    Arguments:
        options: the command line.
        show: is given what the command prints.

    Raises:
        ExperimentError: if the cluster cannot be joined, or the file cannot be read.
    """
    connect(options.address)
    # One thread waits for output; the other can interrupt the command meanwhile.
    on_head = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}, "max_concurrency": 2}
    command: Any = ray.remote(Command).options(**on_head).remote(*_command_line(options))
    waiting = command.read.remote()
    while True:
        try:
            printed = ray.get(waiting)
            waiting = command.read.remote()
        except KeyboardInterrupt:
            command.interrupt.remote()
            continue
        if not printed:
            status: int = ray.get(command.status.remote())
            return status
        show(printed.decode(errors="replace"))


class Command:
    """The command as a process on the head: an ordinary driver, which journals and can be interrupted.

    Arguments:
        arguments: what follows ``python -m orchestrator.run``.
        file: name and content of the experiment's file, if there is one.
    """

    def __init__(self, arguments: Sequence[str], file: tuple[str, str] | None) -> None:
        if file:  # not in the working directory, which jobs of equal code share
            name, text = file
            path = Path(tempfile.mkdtemp(prefix="experiment-")) / name
            path.write_text(text, encoding="utf-8")
            arguments = [str(path), *arguments]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run", *arguments, "--address", "auto"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout
        self._output = self._process.stdout.fileno()

    def read(self) -> bytes:
        """Wait for the command's next output and return it; empty once the command has ended."""
        return os.read(self._output, 1 << 16)

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C would."""
        self._process.send_signal(signal.SIGINT)

    def status(self) -> int:
        """Wait for the command to end and return its exit status."""
        return self._process.wait()


def _command_line(options: argparse.Namespace) -> tuple[list[str], tuple[str, str] | None]:
    arguments = [part for override in options.overrides for part in ("--set", override)]
    arguments += [
        f"--{name}={getattr(options, name)}"
        for name in ("methods", "name", "resume")
        if getattr(options, name) is not None
    ]
    arguments += ["--trust-owner"] if options.trust_owner else []
    arguments += ["--dry-run"] if options.dry_run else []
    if options.experiment is None:
        return arguments, None
    try:
        text = options.experiment.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{options.experiment}: could not be read: {error}") from None
    return arguments, (options.experiment.name, text)
