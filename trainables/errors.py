"""Errors that whoever drives a trial treats apart: a user's input, a trial that diverged, a damaged state."""

from __future__ import annotations


class InputError(ValueError):
    """Raise for anything a user can put right: a wrong path, column, module name or value.

    Arguments:
        key: dotted key of the experiment file, such as ``data.label``.
        message: what was found, what was expected and what to do, in one sentence or two.
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
    """A trial's saved state is not what was written; the trial can begin anew, but not go on from it."""
