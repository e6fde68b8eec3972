"""What a stage is, and what it may set again of the recipe's.

The keys that stand at the top of a recipe and again in a stage are in `StageSettings`; a `Stage` holds them all,
merged, so nobody looks them up twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.recipe.optimizers import AdamW, Linear, Optimizer, Schedule
from launcher.recipe.sharding import Sharding
from launcher.recipe.slurm import Slurm
from launcher.recipe.types import Interval, Name, NonNegativeInt, PositiveFloat, PositiveInt, Strict


class Batch(Strict):
    """global_size = micro_size x accumulation x ranks."""

    global_size: PositiveInt = 32
    """Samples in one optimizer step, over all ranks."""
    micro_size: PositiveInt | Literal["auto"] = "auto"
    """Samples a rank takes through the model at once. auto: of the divisors of global_size / ranks up to 32 the fastest
    that fits the memory by the plan, mostly the largest; a stage whose step runs out of memory all the same goes on
    with the next smaller one."""


class Evaluate(Strict):
    """When the validation split is measured, and which measure chooses what is exported."""

    every: Interval | Literal["end", "never"] = "1ep"
    """``end``: once, after the stage's last step."""
    best: str | None = None
    """A metric of the task; the best evaluation of the run is exported. None: the last weights are."""
    micro_size: PositiveInt | None = None
    """Samples a rank evaluates at once. None: twice the training micro size, and half as many each time that memory
    runs out in an evaluation."""


class Checkpoint(Strict):
    """When a resumable checkpoint is written; one is always written at a stage's end."""

    every: Interval | Literal["auto"] = "auto"
    """auto: each epoch."""
    keep: PositiveInt = 2
    """The newest that are kept; the best one is kept besides."""


class StageSettings(Strict):
    """The keys that stand at the top of a recipe and can be set again in one stage."""

    batch: Batch = Batch()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, else fp32."""
    seed: NonNegativeInt = 0
    """Of the order of the rows, of augmentation and dropout, and of new weights."""
    optimizer: Optimizer = AdamW()
    """The rule of the step, with its peak learning rate."""
    schedule: Schedule = Linear()
    """The learning rate's way over the stage's optimizer steps."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradient; None: no clipping."""
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    sharding: Sharding = Sharding()
    slurm: Slurm = Slurm()
    """What `thawline submit` asks SLURM for. It changes nothing in the training, so a run may go on under another. One
    stage's own needs ``--split-stages``, which makes each stage a job of its own."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations of the blocks that train a second time, in the backward, instead of keeping them: less memory
    for about a third more computation, and the same bits. auto: only where no faster way fits the GPUs."""


class Stage(StageSettings):
    """One part of the training: what thaws, for how long, and how."""

    name: Name
    """Unique in the recipe; names the stage in folders, logs and ``--set``."""
    train: list[str] = Field(min_length=1)
    """``head``, ``backbone``, ``lora``, ``all``, ``layers[-2:]``, or globs and ``re:`` patterns over names."""
    epochs: PositiveInt | None = None
    """Passes over the training split; exactly one of epochs and steps."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    learning_rates: dict[str, PositiveFloat] = {}
    """Pattern -> learning rate of the parameters it names, instead of the optimizer's; the last that matches holds."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """The learning rate is multiplied by this for each layer of depth below the head, frozen or not."""
    optimizer_state: Literal["reset", "carry"] = "reset"
    """carry: go on with the last stage's optimizer state for the parameters that trained in both, by name."""
    batch_norm: Literal["auto", "frozen", "train"] = "auto"
    """Running statistics. auto: frozen where the module's parameters are all frozen, updated elsewhere."""
