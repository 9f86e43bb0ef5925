"""Errors that a trial's driver handles separately: a user's input, a diverged trial, a damaged state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NOT_UTF8: Final = "is not in UTF-8; convert it, such as with: iconv -f latin1 -t utf-8"
"""What is wrong with a file of another encoding."""


def first_of(texts: Sequence[str], most: int) -> str:
    """Write the first of many texts, and how many more there are."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return f"{', '.join(texts[:most])}{more}"


class InputError(ValueError):
    """Raise for anything a user can fix: a wrong path, column, module name or value.

    Arguments:
        key: dotted key of the experiment file, such as ``data.label``.
        message: what was found, what was expected and what to do, in a sentence or two.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return (type(self), (self.key, self.message))


class DivergedError(RuntimeError):
    """Raise when the training or validation loss is no longer finite."""


class DamagedStateError(Exception):
    """Raise when a saved state is not what was written; the trial can start over, but not go on from it."""
