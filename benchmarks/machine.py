"""The machine and versions a benchmark ran with, for the head of its results."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "ray", "optuna", "pyarrow")


def machine() -> str:
    """Name the date, the machine and the versions."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{date.today()}, {os.cpu_count()} cores of {_processor()}, {memory:.0f} GiB, Python"
        f" {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"an {names[0]}" if names else platform.machine()
