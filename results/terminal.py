"""Output that a person reads."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

PLAIN_WIDTH = 120
"""Columns of output that does not go to a terminal."""


def console(file: TextIO) -> Console:
    """Return a console as wide as its terminal, or of ``PLAIN_WIDTH`` columns where there is none.

    It prints texts as they are: brackets in a path are no markup.
    """
    width = None if file.isatty() else PLAIN_WIDTH
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)
