"""Why a stage ends before its last step, or must not be taken for one that went well: the errors that say so.

Each names the stage, the step and what is left to go on from. `train` raises them, all ranks the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from launcher.checkpoint import Saved
from launcher.data.batches import Window
from launcher.errors import Interrupted, StoppedEarly, ThawlineError, TrainingFailed, UserError
from launcher.plan import StagePlan
from launcher.run import Run


def stopped(run: Run, saved: Saved) -> ThawlineError:
    """What ends a run that was asked to stop, once ``saved`` is on the disk."""
    kind: type[ThawlineError] = Interrupted if run.stop.is_interrupt else StoppedEarly
    at = saved.position
    return kind(
        f"stopped after step {at.step} of stage {at.stage}, saved as {saved.folder.name}; "
        f"go on with: {run.run_dir.going_on()}"
    )


def diverged(run: Run, stage: StagePlan, window: Window, step: int, what: str) -> TrainingFailed:
    """For a step that must not be taken, with the rows that were in it; all ranks must reach this."""
    mine = [row for batch in window.micro for row, weight in zip(batch.ids, batch.weights, strict=True) if weight]
    rows = [row for part in run.runtime.gather(mine) for row in part]
    shown = ", ".join(rows[:64]) + (f" and {len(rows) - 64} more" if len(rows) > 64 else "")
    return TrainingFailed(
        f"{what} at step {step} of {stage.steps} in stage {stage.name}; rows of the batch: {shown}. "
        f"{_after_diverging(run)}"
    )


def refuse_diverged(run: Run, stage: StagePlan, step: int, metrics: Mapping[str, float]) -> None:
    """Raises: TrainingFailed when the validation loss is not finite."""
    if not math.isfinite(loss := metrics["loss"]):
        at = f"after step {step} of {stage.steps} in stage {stage.name}"
        raise TrainingFailed(f"the validation loss is {loss} {at}. {_after_diverging(run)}")


def finite(
    run: Run, stage: StagePlan, parameters: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters at a stage's end, one by one.

    Raises: TrainingFailed when one is not finite, on all ranks.
    """
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            raise TrainingFailed(
                f"{name} is not finite after the last step of stage {stage.name}. {_after_diverging(run)}"
            )
        yield name, parameter


def untrainable(stage: StagePlan) -> UserError:
    """For a stage whose loss depends on nothing that trains."""
    trained = ", ".join(stage.settings.train)
    return UserError(
        f"stage {stage.name}: train: {trained} names {stage.trainable:,} parameters, and this model computes its loss "
        "without any of them; name others (`thawline plan` lists the groups)"
    )


def _after_diverging(run: Run) -> str:
    """What there is to go back to, and what to do."""
    newest = run.run_dir.latest.read_text().strip() if run.run_dir.latest.is_file() else "none"
    return f"The newest checkpoint is {newest}. Try a lower learning rate, clip_grad_norm, or precision fp32"
