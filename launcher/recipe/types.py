"""The scalars that recipes are made of, and the model that all their sections are.

Owns what a number, a name and an interval may be, wherever in a recipe they stand.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGEST_INT = 2**63 - 1
"""What an int64 holds; torch and numpy take no larger seed, count or size."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", title="text of 1 to 64 a-z 0-9 . _ -, first a letter or digit"),
]
Betas = Annotated[tuple[Probability, Probability], Field(strict=False)]
"""A list will do for a tuple, its entries are as strict as anywhere."""
Interval = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}(ep|st)$", examples=["1ep", "200st"])]
"""``1ep`` = every epoch, ``200st`` = every 200 optimizer steps."""


def interval_steps(interval: str, steps_per_epoch: int) -> int:
    """Optimizer steps in ``2ep`` or ``200st``."""
    count, unit = int(interval[:-2]), interval[-2:]
    return count * steps_per_epoch if unit == "ep" else count


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types (an int is a float, nothing else)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
