"""How many bytes a stage's checkpoints take on the disk that all ranks share.

Owns the arithmetic, pure as `memory`, whose sizes it takes; compared with the files of real engines in
tests/integration/test_memory.py. Leaves out what does not grow with the model: manifests, pickles' frames, buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from launcher.costs.memory import FLAT_ALIGNMENT, FP32_BYTES, Sharding


class DiskPlan(BaseModel):
    """Bytes of a run's folder, of all ranks together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_bytes: int
    """Of a checkpoint inside the stage: the engine's own files, and where ranks may become others (``slurm.min_nodes``)
    the whole model and optimizer by name."""
    model_bytes: int
    """Of the whole model in fp32: a stage's end, the best evaluation, the export."""
    most_bytes: int
    """At most, while the stage runs: the model it started from, the checkpoints that are kept, the one being written,
    and where an evaluation chooses, the best one; then each may have been the best when it was written, and holds the
    model too."""


def engine_bytes(groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int) -> int:
    """Of N elements of which T train, s bytes an element of the engine, k states of the optimizer:

    - ddp: `backends.data_parallel` saves module and optimizer once, s N + 4 k T; masters are saved whole,
      4 T.
    - ZeRO 1 and 2: the module once, s N, and each rank its part of masters and states, 4 (1 + k) T, padded.
    - ZeRO 3: each rank its part of masters and states, 4 (1 + k) T, and of frozen parameters, s a frozen element;
      trained parameters come from their masters (deepspeed/runtime/engine.py, ``_save_zero_checkpoint``).

    Args:
        groups, frozen, states: see `memory.model_states`.
    """
    trained, still = sum(map(sum, groups)), sum(frozen)
    s, ranks = sharding.engine_bytes, sharding.ranks
    if sharding.zero_stage == 0:
        masters = 0 if sharding.master == "none" else 1
        return s * (trained + still) + FP32_BYTES * (masters + states) * trained
    if sharding.zero_stage == 3:
        owned = ranks * sum(-(-numel // ranks) for group in groups for numel in group)
        kept = [] if sharding.nvme else frozen  # `backends.swap_files` leaves them to the stage's start
        return FP32_BYTES * (1 + states) * owned + s * ranks * sum(-(-numel // ranks) for numel in kept)
    multiple = FLAT_ALIGNMENT * ranks
    padded = sum(-(-sum(group) // multiple) * multiple for group in groups)
    return s * (trained + still) + FP32_BYTES * (1 + states) * padded


def disk_plan(
    groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int, *, named_states: int,
    keep: int, chooses: bool, for_any_ranks: bool = False,
) -> DiskPlan:  # fmt: skip
    """What a stage needs.

    Args:
        groups, frozen, states: see `memory.model_states`.
        named_states: tensors that the optimizer keeps per parameter; by name they are written in fp32, whatever they
            are in (`backends`, ``optimizer_state``).
        keep: `recipe.Checkpoint.keep`.
        chooses: an evaluation chooses the best.
        for_any_ranks: ranks may become others, so that each checkpoint has model and optimizer by name.
    """
    trained = sum(map(sum, groups))
    model = FP32_BYTES * (trained + sum(frozen))
    inside = engine_bytes(groups, frozen, sharding, states)
    if for_any_ranks:
        inside += model + FP32_BYTES * named_states * trained
    each = inside + (model if chooses and not for_any_ranks else 0)
    end = model + FP32_BYTES * named_states * trained  # a stage's end, with the state that the next carries on
    most = model + keep * each + max(each, end) + (each if chooses else 0)
    return DiskPlan(checkpoint_bytes=inside, model_bytes=model, most_bytes=most)
