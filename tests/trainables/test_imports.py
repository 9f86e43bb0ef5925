"""What importing the package brings along."""

from __future__ import annotations

import subprocess
import sys

IMPORTS = """
import sys, torch
before = torch.compile
import trainables
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules, torch.compile is before)
"""


def test_bitsandbytes_comes_without_the_compiler_and_leaves_torch_as_it_was() -> None:
    told = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False", "True"]
