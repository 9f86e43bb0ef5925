"""Keeps the terminal for what the user should see."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

from rich.console import Console

from results.terminal import console


@contextmanager
def quiet(log: BinaryIO) -> Iterator[Console]:
    """Send everything this process and its libraries print to ``log``; yield a console that still shows.

    Ray, transformers and their C++ parts write to the file descriptors, so those are redirected.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    with os.fdopen(os.dup(out), "w") as shown:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield console(shown)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.close(out)
            os.close(err)


def printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a text without breaking its lines, which a user may want to copy."""
    return partial(console.print, soft_wrap=True)
