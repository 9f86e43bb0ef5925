"""Whether code that comes with a model may run: a run that somebody sent cannot decide that by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.errors import ExperimentError

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

TRUST: Final = "model.trust_remote_code=true"
"""The setting that is not taken from a recorded run."""


def check_trusted(recorded: Experiment, overrides: Sequence[str], run: str) -> None:
    """Refuse to run code that the recorded experiment trusts, unless the command line does, too.

    Raises:
        ExperimentError: saying how to trust it.
    """
    if recorded.model.trust_remote_code and TRUST not in overrides:
        raise ExperimentError(
            f"{run}: {recorded.model.path} brings Python code that would run here. Whoever made"
            f" this run trusted it; if you do too, give --set {TRUST}"
        )
