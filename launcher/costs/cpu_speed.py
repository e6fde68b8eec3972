"""What the ranks of a machine without GPUs reach together, as measured once: see `cpu_measurement`.

Owns the type that the plan carries and `step_time` reads. Pure.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]


class CpuSpeed(BaseModel):
    """Of all ranks of one node together, in fp32, forward and backward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flops: Positive
    """Of matrix products, multiplications and additions a second."""
    bandwidth: Positive
    """Bytes a second that element-wise operators read and write."""
    launch_s: Positive
    """Seconds of one operator on a few numbers, the time that no size makes shorter; of one rank."""
