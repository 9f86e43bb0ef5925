"""What importing the package brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_NEEDED = {
    "orchestrator.run": ("torch", "ray", "pydantic"),  # --help
    "orchestrator.packs": ("torch", "transformers", "optuna"),  # a packed trial's worker only forwards
    "orchestrator.phases": ("statsmodels", "moocore", "results.analysis"),  # the first trial does not wait
}


@pytest.mark.parametrize("module", NOT_NEEDED)
def test_nothing_is_imported_that_is_not_needed(module: str) -> None:
    code = f"import sys, {module}; print(sys.modules.keys() & set({NOT_NEEDED[module]}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "set()"


READING = """
import sys
opened = []
sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
import orchestrator.worker
print(sum(name.endswith("modeling_albert.py") for name in opened))
"""


def test_files_of_models_that_nobody_asked_for_are_read_once() -> None:
    told = subprocess.run([sys.executable, "-c", READING], capture_output=True, text=True, check=True)
    assert int(told.stdout.splitlines()[-1]) <= 1
