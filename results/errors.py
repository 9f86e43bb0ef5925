"""A result set that cannot be read, and how a message quotes what somebody wrote."""

from __future__ import annotations

from typing import Final

LONGEST_LINE: Final = 1000
"""Characters of a message."""


class ResultSetError(ValueError):
    """A result set that cannot be read: which file, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Escape what would break a line or speak to the terminal, and cut what is too long."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} [...] {line[-half:]}"
