"""What a user can put right, said before any work is done."""

LONGEST = 1000
"""Characters of a problem."""


class ExperimentError(ValueError):
    """Everything that is wrong with an experiment, one line each.

    A line says where (file and key), what was found, what was expected and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = [_one_line(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def _one_line(text: str) -> str:
    """Escape what would break a line or speak to the terminal, and cut what is too long.

    A problem may quote any file.
    """
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
