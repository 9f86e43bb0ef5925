"""What a user can put right, said before any work is done."""


class ExperimentError(ValueError):
    """Everything that is wrong with an experiment, one line each.

    A line says where (file and key), what was found, what was expected and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
