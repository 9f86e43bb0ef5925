"""Where a result came from: versions and revision of the code that made it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from orchestrator.experiment import Experiment
from orchestrator.prepare import Prepared
from orchestrator.rows import Provenance
from trainables.sources import dataset_name

PACKAGES = ("ray", "torch", "transformers", "peft", "bitsandbytes", "datasets", "optuna", "pyarrow")


def git_revision(directory: Path) -> str | None:
    """Return the commit of the checkout at ``directory``, with ``-dirty`` if it has changes, or None."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def collect_provenance(experiment: Experiment, prepared: Prepared) -> Provenance:
    """Collect what every row of an experiment has in common."""
    return Provenance(
        base_model_fingerprint=prepared.base.fingerprint,
        dataset=dataset_name(experiment.data),
        splits=prepared.data.splits,
        dataset_fingerprint=prepared.data.fingerprint,
        git_revision=git_revision(Path(__file__).parent),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        labels=prepared.data.labels,
    )
