"""What a stage really took of a rank's memory, beside what its plan said: ``stages/SS-NAME/memory.json``.

Owns the file's fields, the error between the two, and their line in ``thawline status``. Pure from files; imports no
torch. Written by `memory_meter` at a stage's end, read by `status` and by ``thawline plan --compare``.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.costs.peak import GIB, MemoryPlan
from launcher.errors import UserError
from launcher.run_dir import RunDir

PARTS = ("parameters", "gradients", "masters", "optimizer", "activations")


class Measured(BaseModel):
    """Bytes of one rank, or of several the most that any had. None: not measured here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allocated: int | None = None
    """Peak of torch's CUDA allocator over the stage (``max_memory_allocated``)."""
    reserved: int | None = None
    """Peak of what that allocator took from the GPU (``max_memory_reserved``)."""
    resident: int | None = None
    """Peak of the process's resident memory over the stage; CPU ranks."""
    parameters: int | None = None
    gradients: int | None = None
    """After the backward of the first micro-batch."""
    masters: int | None = None
    optimizer: int | None = None
    """After the first step."""
    activations: int | None = None
    """Saved by autograd in the first micro-batch. Not under ZeRO-3: watching would keep the gathered weights alive."""


class MemoryRecord(BaseModel):
    """One stage's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    micro_size: int
    predicted: MemoryPlan | None
    """As it stands in plan.json."""
    measured: Measured
    """The most of any rank."""
    ranks: list[Measured]

    def compared(self, predicted: MemoryPlan | None = None) -> Compared | None:
        """The recorded prediction, or another one, against what was measured; None: one of them is missing."""
        predicted = predicted or self.predicted
        return compare(predicted, self.measured) if predicted else None


class Compared(BaseModel):
    """Two numbers that mean the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Above 0: more was predicted than was needed."""
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        numbers = f"{_size(self.predicted)} predicted, {_size(self.measured)} measured ({self.error:+.1%})"
        return f"{numbers}: {self.what}"


def compare(predicted: MemoryPlan, measured: Measured) -> Compared | None:
    """On a GPU the peak without the margins, against the allocator's; on a CPU rank the parts that were counted."""
    if measured.allocated:
        return Compared(
            what="peak of what torch allocates on the GPU",
            predicted=predicted.peak_bytes - predicted.margin_bytes,
            measured=measured.allocated,
        )
    expected = {
        "parameters": predicted.parameters_bytes,
        "gradients": predicted.moments["backward"]["gradients"],
        "masters": predicted.master_bytes,
        "optimizer": predicted.optimizer_bytes,
        "activations": predicted.moments["backward"]["activations"],
    }
    counted = {name: value for name in PARTS if (value := getattr(measured, name)) is not None}
    if not sum(counted.values()) or predicted.host_bytes:  # offloaded, it is all in the same memory here
        return None
    return Compared(
        what=", ".join(counted), predicted=sum(expected[name] for name in counted), measured=sum(counted.values())
    )


def read_all(run_dir: RunDir) -> list[MemoryRecord]:
    """Of each stage that has one, in the order of stages.

    Raises:
        UserError: a file is not of this version.
    """
    found = []
    for file in sorted(run_dir.stages.glob("*/memory.json")):
        try:
            found.append(MemoryRecord.model_validate_json(file.read_bytes()))
        except ValidationError as error:
            raise UserError(
                f"{file} is not of this version of thawline: {error.errors()[0]['msg']}; delete it"
            ) from error
    return found


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"
