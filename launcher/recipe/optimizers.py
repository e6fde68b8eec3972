"""The optimizer's rules and the learning rate's schedules.

An optimizer's ``learning_rate`` is the peak of the schedule, which is a factor for each optimizer step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.recipe.types import Betas, NonNegativeFloat, PositiveFloat, Probability, Strict

SCHEDULES_NOT_BUILT_YET = ("step", "polynomial", "plateau")


class AdamW(Strict):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), through `thawline_kernels`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 2.0e-5
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.01
    """Not applied to biases and norms."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square, each step."""
    epsilon: PositiveFloat = 1.0e-8
    """Added to the root of the mean square."""
    implementation: Literal["auto", "fused", "torch"] = "auto"
    """auto: the compiled step where it can be had, else the reference, and says so; fused: compiled or an error."""
    master: Literal["none", "split16", "fp32"] = "none"
    """How ddp keeps the full value of weights whose module is in bf16, as ZeRO's is. split16: the 16 bits that bf16
    lacks, 14 bytes for each element that trains, gradient included; fp32: a whole copy, 16 bytes; none: the module
    itself stays in fp32 and computes in bf16 under autocast, 16 bytes and what autocast casts. Exports hold the full
    value. ZeRO keeps its own masters."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the two running means. bf16 takes 4 bytes an element less, and the second is rounded stochastically."""


class Adam(Strict):
    """Adam (Kingma and Ba, 2015); weight decay, if any, is L2 in the gradient."""

    kind: Literal["adam"]
    learning_rate: PositiveFloat = 1.0e-3
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and norms."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square, each step."""
    epsilon: PositiveFloat = 1.0e-8
    """Added to the root of the mean square."""


class SGD(Strict):
    """Stochastic gradient descent; weight decay is L2 in the gradient."""

    kind: Literal["sgd"]
    learning_rate: PositiveFloat = 1.0e-2
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and norms."""
    momentum: Probability = 0.0
    """Share of the last step's direction that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum (needs momentum above 0)."""


Optimizer = Annotated[AdamW | Adam | SGD, Field(discriminator="kind")]


class Constant(Strict):
    """Warm-up, then the full rate."""

    kind: Literal["constant"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""


class Linear(Strict):
    """Warm-up, then a straight line to ``end`` x the rate."""

    kind: Literal["linear"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate after the last step."""


class Cosine(Strict):
    """Warm-up, then half a cosine down to ``end`` x the rate (Loshchilov and Hutter, 2017, eq. 5)."""

    kind: Literal["cosine"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate after the last step."""


class Exponential(Strict):
    """Warm-up, then the rate falls by the same factor each step, down to ``end`` x the rate after the last."""

    kind: Literal["exponential"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate after the last step."""


Schedule = Annotated[Constant | Linear | Cosine | Exponential, Field(discriminator="kind")]
