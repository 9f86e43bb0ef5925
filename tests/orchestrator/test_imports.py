"""What importing the package brings along."""

from __future__ import annotations

import subprocess
import sys

IMPORTS = """
import sys
import orchestrator.phases, orchestrator.progress
print([name for name in ("statsmodels", "moocore", "results.analysis") if name in sys.modules])
"""


def test_trials_begin_before_what_analyses_them_is_imported() -> None:
    told = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


FORWARDING = """
import sys
import orchestrator.packs
print([name for name in ("torch", "transformers", "optuna") if name in sys.modules])
"""


def test_the_worker_of_a_packed_trial_imports_nothing_that_trains() -> None:
    told = subprocess.run([sys.executable, "-c", FORWARDING], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


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
