"""What is said when memory runs out in a stage: where, in which micro size, what the plan expected, what to do.

Owns the turn from a library's error to `errors.OutOfMemory`. What then becomes of the stage is `plan.micro_size`'s.
Called by `walk` around a stage, and by `train` around each step and evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from launcher import rank_error
from launcher.costs.peak import breakdown
from launcher.errors import OutOfMemory, Shortage
from launcher.plan import StagePlan


@contextmanager
def memory_told(stage: StagePlan, during: Literal["step", "evaluation", "other"]) -> Iterator[None]:
    """Say of an error that memory ran out, in which stage it did and what was expected there.

    Raises:
        OutOfMemory: instead of the library's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        advice = rank_error.memory_advice(error)
        if advice is None:
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        planned = f"The plan expects {breakdown(stage.memory)}.\n" if stage.memory else ""
        where, size = _where(stage, during)
        raise OutOfMemory(
            Shortage(stage.name, during, size),
            f"stage {stage.name} ran out of memory {where}: {first}\n{planned}{advice}.",
        ) from error


def _where(stage: StagePlan, during: str) -> tuple[str, int]:
    if during == "step":
        size = stage.batch.micro_size
        return f"at micro size {size} of a global batch of {stage.batch.global_size}", size
    if during == "evaluation":
        size = stage.settings.evaluate.micro_size or 1
        return f"in its evaluation of {size} samples at once (evaluate.micro_size)", size
    return "outside of its steps and evaluations, where no micro size matters", 0
