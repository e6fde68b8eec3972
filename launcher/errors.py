"""Every error a user can meet, and the exit code it ends the process with.

    ThawlineError                 never raised itself
    ├── UserError            2    the recipe, the arguments or the data are wrong
    │   ├── RecipeError      2    a list of problems, each with file, line and dotted path
    │   └── DataError        2    a file, a column or a label is not what the recipe says it is
    ├── EnvironmentProblem   3    no such GPU, no compiler, a port in use, a library missing
    ├── TrainingFailed       4    diverged, a hang, a frozen weight that moved
    │   └── OutOfMemory      4    with the stage; with micro_size: auto it goes on in smaller ones
    ├── StoppedEarly        75    stopped on request; `thawline resume` goes on
    ├── Interrupted        130    Ctrl-C
    └── FollowsFirst              a rank that ends for the first one's error, with its code

A message has three parts: what is wrong with its value, where, and what to do. None of these shows a traceback to the
user; any other exception is a bug of ours and does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class ThawlineError(Exception):
    """Base of all errors that are shown without a traceback."""

    exit_code: int = 1


class UserError(ThawlineError):
    """The recipe, the arguments or the data are wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe."""

    path: str
    """Dotted path of the key, such as ``stages.full.optimizer.learning_rate``; stages go by name."""
    message: str
    """What is wrong, with the value; what is allowed; the nearest right name."""
    file: str | None = None
    line: int | None = None
    """1-based line in ``file``; None for a value that came from ``--set``."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class RecipeError(UserError):
    """All the problems of one recipe at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class DataError(UserError):
    """A file, a column or a label is not what the recipe says it is."""


class EnvironmentProblem(ThawlineError):
    """The machine lacks what was asked of it."""

    exit_code = 3


class TrainingFailed(ThawlineError):
    """Training began and cannot go on."""

    exit_code = 4


@dataclass(frozen=True)
class Shortage:
    """Where memory ran out."""

    stage: str
    during: Literal["step", "evaluation", "other"]
    """``other``: while the stage was set up, saved or ended, where no micro-batch matters."""
    size: int
    """Samples that were computed at once; 0 for ``other``."""


class OutOfMemory(TrainingFailed):
    """A rank's memory did not do for a stage."""

    def __init__(self, shortage: Shortage, message: str) -> None:
        self.shortage = shortage
        super().__init__(message)


class StoppedEarly(ThawlineError):
    """Stopped on request after a checkpoint; the run can be resumed."""

    exit_code = 75


class Interrupted(ThawlineError):
    """Stopped by Ctrl-C after a checkpoint; the run can be resumed."""

    exit_code = 130


class FollowsFirst(ThawlineError):
    """The first rank could not begin, and this one ends with it."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__("the first rank's error says why")
