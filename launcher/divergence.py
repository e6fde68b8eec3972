"""When a loss that is still a number has run away, and what to say of it.

A loss diverges when it stays above ten times where it began, or above ten times that of guessing if that is more, for
`PATIENCE` optimizer steps in a row; at a stage's end, twice is too much. One bad batch is over after a step or two. A
loss that is high from the start, as a pretrained model's over a new vocabulary, is the measure itself, and steps that
fp16's loss scaling leaves out change no loss. A loss that is no number is `stage_errors`'. Pure; `train` hands in each
step's loss, which all ranks share.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

FACTOR = 10.0
END_FACTOR = 2.0
"""Of the stage's last steps: no spike that is still to pass, and worse than a model that has learned nothing."""
PATIENCE = 5
"""Steps in a row; half of a stage's where it has fewer than ten."""


class Course(BaseModel):
    """How the loss of a stage went so far. Part of a checkpoint's position: a resumed run judges as one in a piece."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    first: float | None = None
    """Loss of the stage's first step, before any update."""
    last: float = 0.0
    above: int = 0
    """Steps in a row, up to the last, whose loss was above the limit."""
    above_end: int = 0
    """The same, of what is too much at the stage's end."""
    diverged_at: int | None = None
    """The step at which there were too many of them for the first time."""
    worst: float = 0.0

    def start(self, random_loss: float | None) -> float:
        """Where it began, or the loss of guessing if that is more; None: there is no guessing."""
        return max(self.first or 0.0, random_loss or 0.0)

    def after(self, step: int, steps: int, loss: float, random_loss: float | None) -> Course:
        """With one more step, the ``step``-th of ``steps``."""
        if self.first is None:
            return self.model_copy(update={"first": loss, "last": loss, "worst": loss})
        start, patience = self.start(random_loss), max(1, min(PATIENCE, steps // 2))
        above = self.above + 1 if 0.0 < FACTOR * start < loss else 0
        above_end = self.above_end + 1 if 0.0 < END_FACTOR * start < loss else 0
        is_new = self.diverged_at is None and (above >= patience or (step == steps and above_end >= patience))
        return self.model_copy(
            update={
                "last": loss, "above": above, "above_end": above_end, "worst": max(self.worst, loss),
                "diverged_at": step if is_new else self.diverged_at,
            }
        )  # fmt: skip

    def evaluated(self, step: int, loss: float, random_loss: float | None) -> Course:
        """With the validation loss after the stage's last step."""
        if self.diverged_at is not None or not 0.0 < FACTOR * self.start(random_loss) < loss:
            return self
        return self.model_copy(update={"diverged_at": step, "worst": max(self.worst, loss), "last": loss})

    def warning(self, stage: str, random_loss: float | None) -> str | None:
        """What to tell of a loss that diverged."""
        if self.diverged_at is None:
            return None
        guess = f" and guessing gives {random_loss:.3g}" if random_loss else ""
        return (
            f"stage {stage} diverged: at step {self.diverged_at} its loss had run away from {self.first:.3g} at the "
            f"start{guess} (highest {self.worst:.3g}, last {self.last:.3g}); lower the learning rate, or "
            "set clip_grad_norm"
        )
