"""Output that a person reads."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

PLAIN_WIDTH = 120
"""Columns of output that does not go to a terminal."""


def console(file: TextIO) -> Console:
    """Return a console as wide as its terminal, or of ``PLAIN_WIDTH`` columns where there is none."""
    return Console(file=file, width=None if file.isatty() else PLAIN_WIDTH)
