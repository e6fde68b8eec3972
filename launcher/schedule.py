"""The learning rate as a pure function of the optimizer step.

Nothing here has state: a resumed run asks the same question and gets the same answer. The factor multiplies each
group's own rate, so that layers keep their ratio through the whole stage.
"""

from __future__ import annotations

import math

from launcher.recipe import Constant, Cosine, Exponential, Linear


def factor_at(schedule: Constant | Linear | Cosine | Exponential, step: int, steps: int) -> float:
    """Factor of the learning rate for the optimizer step that comes after ``step`` finished ones.

    Args:
        schedule: kind, ``warmup`` as a share of ``steps``, and ``end`` as a factor.
        step: 0 for the first optimizer step, ``steps - 1`` for the last.
        steps: optimizer steps of the stage.

    During warm-up the factor is ``(step + 1) / warmup_steps``: the first step already learns, the last warm-up step
    has the full rate. Afterwards ``progress`` runs from 0 to 1 at the (never taken) step ``steps``.
    """
    warmup_steps = round(schedule.warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    match schedule:
        case Constant():
            return 1.0
        case Linear(end=end):
            return 1.0 + (end - 1.0) * progress
        case Cosine(end=end):
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case Exponential(end=end):
            return float(end**progress)
