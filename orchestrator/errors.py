"""Errors that a user can fix, reported before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.secrets import redact
from results.errors import one_line

if TYPE_CHECKING:
    from trainables.errors import InputError


class ExperimentError(ValueError):
    """Everything that is wrong with an experiment, one line each.

    A line says where (file and key), what was found, what was expected and what to do.

    Arguments:
        problems: a line each.
        where: what each line begins with, such as the experiment's file.
    """

    def __init__(self, *problems: str | InputError, where: str | None = None) -> None:
        begin = "" if where is None else f"{where}: "
        self.problems = [one_line(redact(f"{begin}{problem}")) for problem in problems]
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ExperimentError], tuple[str, ...]]:
        return (type(self), tuple(self.problems))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Raise what is wrong within as an :class:`ExperimentError` whose lines begin with ``where``."""
    from trainables.errors import InputError  # with torch, which --help does without

    try:
        yield
    except ExperimentError as error:
        raise ExperimentError(*error.problems, where=where) from None
    except InputError as error:
        raise ExperimentError(error, where=where) from None
