"""The whole recipe: task, model, data, the stages in their order, and where the curves go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.recipe.data import Data
from launcher.recipe.stages import Stage, StageSettings
from launcher.recipe.task import Model, Task
from launcher.recipe.types import Name, PositiveInt, Strict


class Wandb(Strict):
    """Weights & Biases."""

    project: str = Field(min_length=1)
    """The project that the run appears in."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when a key is set, offline otherwise."""
    entity: str | None = None
    """The team or user it belongs to. None: the key's own."""
    group: str | None = None
    """A name that several runs share, to show them together."""
    tags: list[str] = []
    """Words to find the run by."""


class Tracking(Strict):
    """Where the curves go besides ``metrics.jsonl``."""

    wandb: Wandb | None = None
    """Weights & Biases. None: not used."""
    log_every: PositiveInt = 10
    """Optimizer steps between two lines of training metrics."""


class Recipe(StageSettings):
    """A whole recipe, merged and checked. The ``StageSettings`` here are the defaults its stages were merged over."""

    name: Name
    """Names the run and its default folder, ``runs/NAME``."""
    task: Task
    """What is learned; its kind says which columns it reads and which metrics it has."""
    model: Model
    data: Data
    """Where the rows come from."""
    stages: list[Stage] = Field(min_length=1)
    """In the order they run."""
    tracking: Tracking = Tracking()
