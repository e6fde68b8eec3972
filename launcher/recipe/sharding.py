"""The ``sharding:`` section of a recipe: how model, gradients and optimizer state are spread, and where they lie.

Owns the names and the allowed values of its keys, as `recipe` does for the others; `rules` compares them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.recipe.types import Strict

SHARDING_NOT_BUILT_YET = {"strategy": ("fsdp",)}


class Sharding(Strict):
    """How model, gradients and optimizer state are spread over the ranks."""

    strategy: Literal["auto", "ddp", "zero1", "zero2", "zero3"] = "auto"
    """auto: on GPUs the fastest of ddp, zero1, zero2, zero3, zero2 and zero3 with offload that fits the memory, by
    estimate, together with the micro size and gradient checkpointing where those are auto too; at the last zero3 with
    offload: nvme, where a node has a disk for it; on CPU ranks ddp."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """cpu: the optimizer state, and under zero3 the parameters too, live in host memory; nvme, for zero3: the optimizer
    state lives in files on each node's own disk, the parameters in host memory."""
    nvme_path: str | None = Field(default=None, title="an absolute path, which may begin with a variable, or null")
    """For offload: nvme, a folder on a disk of each node's own. null: SLURM_TMPDIR, else TMPDIR, else /tmp."""
