"""The error of a result set that cannot be read, and how messages quote untrusted text."""

from __future__ import annotations

from typing import Final

LONGEST_LINE: Final = 1000
"""Most characters of a message."""


class ResultSetError(ValueError):
    """A result set cannot be read; the message says which file, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Escape line breaks and control codes, and cut long text in the middle."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} [...] {line[-half:]}"
