"""How large an optimizer's update of a weight can be, and whether fp32 can hold it.

A weight w and an update below half a unit in the last place of w add up to w: the step is taken and nothing moves. A
norm's weight near 1 needs 3e-8; Adam's update is the learning rate times a ratio of about 1, and less where gradients
are below its epsilon. Owns that arithmetic, and the warning a plan can give before anything has trained. Pure: no
torch. Called by `run_plan` and, with measured gradients, by `gradient_witness` and `stages`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.plan.parameters import Group, ModelFacts
from launcher.recipe import SGD, Adam, AdamW, Stage

MANTISSA_BITS = 24
"""Of fp32, with the one that is not stored. Weights that train are kept in fp32, whatever they compute in."""
SMALLEST_EXPONENT = -149
"""2 ** this is the smallest number of fp32 above zero."""
SIZEABLE = 16.0
"""Halves of a unit in the last place. An update of so many moves a weight, though it is known only by its bound: the
bound takes Adam's ratio of means for 1 and the gradients of ranks and micro-batches as if one of them were all."""
OVERFLOW = 1.8e19
"""The square of a larger gradient may be infinite in fp32; Adam's mean square stays so, and makes every update 0."""
NORM_WEIGHT = 1.0
"""What a norm's weight begins with, and stays near in a trained model."""


def half_unit(value: float) -> float:
    """Half the distance from ``value`` to its nearest neighbour in fp32."""
    mantissa, exponent = math.frexp(abs(value))
    if mantissa == 0.5:  # a power of two: below it numbers are twice as dense
        exponent -= 1
    spacing = max(exponent - MANTISSA_BITS, SMALLEST_EXPONENT) if value else SMALLEST_EXPONENT
    return math.ldexp(0.5, spacing)


@dataclass(frozen=True)
class UpdateRule:
    """The optimizer's step of one parameter."""

    optimizer: AdamW | Adam | SGD
    learning_rate: float
    """Peak of the schedule."""
    weight_decay: float

    def largest(self, factor: float, gradient: float, value: float) -> float:
        """Size of the update of an element of size ``value`` with a gradient of size ``gradient``, at ``factor`` of the
        peak rate. Of SGD with momentum: once the gradient has stayed as it is."""
        rate = self.learning_rate * factor
        match self.optimizer:
            case AdamW(epsilon=epsilon):
                return rate * (gradient / (gradient + epsilon) + self.weight_decay * value)
            case Adam(epsilon=epsilon):
                pushed = gradient + self.weight_decay * value
                return rate * pushed / (pushed + epsilon)
            case SGD(momentum=momentum):
                return rate * (gradient + self.weight_decay * value) / max(1.0 - momentum, 1e-3)

    def overflows(self, gradient: float) -> bool:
        """Whether a gradient is so large that Adam's mean square becomes infinite."""
        return not isinstance(self.optimizer, SGD) and gradient > OVERFLOW

    def is_below_epsilon(self, gradient: float) -> bool:
        """Whether a gradient is so small that Adam's epsilon, and not the rate, makes its update small."""
        return not isinstance(self.optimizer, SGD) and gradient < self.optimizer.epsilon


def warnings(stage: Stage, groups: Iterable[Group], facts: ModelFacts) -> list[str]:
    """What to say before a stage whose rates cannot move a norm's weights."""
    shapes = {parameter.name: parameter.shape for parameter in facts.parameters if not parameter.is_adapter}
    found: list[tuple[float, str]] = []
    for group in groups:
        largest = _foreseen(UpdateRule(stage.optimizer, group.learning_rate, group.weight_decay), stage.clip_grad_norm)
        if largest is not None and largest < half_unit(NORM_WEIGHT):
            norms = [name for name in group.names if name.endswith("weight") and len(shapes.get(name, ())) == 1]
            found += [(group.learning_rate, name) for name in norms]
    if not found:
        return []
    rates = sorted({rate for rate, _ in found})
    at = f"a learning rate of {rates[0]:.2g}" if len(rates) == 1 else f"rates of {rates[0]:.2g} to {rates[-1]:.2g}"
    names = ", ".join(name for _, name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    weights = f"{len(found)} norm weight{'s' if len(found) > 1 else ''}"
    remedy = "raise layer_decay or the learning rate" if stage.layer_decay is not None else "raise the learning rate"
    return [
        f"stage {stage.name}: {weights} may not move at {at}: fp32 cannot hold an update below "
        f"{half_unit(NORM_WEIGHT):.2g} of a value near 1 ({names}); {remedy}, or leave them out of train"
    ]


def _foreseen(rule: UpdateRule, clip_grad_norm: float | None) -> float | None:
    """The largest update whatever the gradients will be; None where it depends on them."""
    if isinstance(rule.optimizer, SGD):
        return None if clip_grad_norm is None else rule.largest(1.0, clip_grad_norm, NORM_WEIGHT)
    return rule.learning_rate
