"""How many bytes of model states a rank holds: parameters, gradients, masters, optimizer state, buffers.

Owns the arithmetic, as pure functions of numbers. It knows no recipe, no model and no torch: `plan.fit` brings the
numbers of a stage, `costs.peak` adds what depends on the batch. Every formula names what it was read from; those of the
model states are compared with the bytes that real ranks hold in tests/integration/test_memory.py.

"DeepSpeed" below is deepspeed 0.19.8 under the configuration of `backends.zero`: its defaults, contiguous gradients,
``overlap_comm`` from stage 2 on, fp32 gradient accumulation for bf16 from stage 2 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FP32_BYTES = 4
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATES_PER_ELEMENT = {"adamw": 2, "adam": 2, "sgd": 1}
"""fp32 tensors of the parameter's shape that the optimizer keeps; sgd: if it has momentum."""
MASTER_BYTES = {"none": 0, "split16": 2, "fp32": 4}
"""Of an element, what ddp keeps beside a module in bf16: the lower half of the fp32 value, or all of it."""

# Defaults of deepspeed.runtime.zero.config.DeepSpeedZeroConfig, in elements.
REDUCE_BUCKET_ELEMENTS = 500_000_000
PERSISTENT_ELEMENTS = 100_000
"""stage3_param_persistence_threshold: ZeRO-3 keeps smaller parameters whole on every rank."""
MAX_LIVE_ELEMENTS = 1_000_000_000
"""stage3_max_live_parameters and stage3_max_reuse_distance: how much ZeRO-3 leaves gathered."""
SUB_GROUP_ELEMENTS = 1_000_000_000
"""sub_group_size: how much of a rank's partition ZeRO-3 steps at once."""
SWAP_SUB_GROUP_ELEMENTS = 100_000_000
"""sub_group_size under ``offload: nvme``: each swap buffer is as large as the largest sub-group."""
SWAP_BUFFERS = 4
"""buffer_count: what a rank reads into at once, the master, its gradient and the two states of Adam."""
SWAPPED_BYTES = 2**20
"""MIN_AIO_BYTES of deepspeed.runtime.swap_tensor.utils: what is smaller stays in host memory."""
SWAP_ALIGNMENT = 1024
"""AIO_ALIGNED_BYTES, for each of the one thread that reads and writes: a file is a multiple of it."""
FLAT_ALIGNMENT = 2
"""nccl_start_alignment_factor: stages 1 and 2 pad each flat group to a multiple of it times the ranks."""


@dataclass(frozen=True)
class Sharding:
    """How a stage is spread over the ranks."""

    zero_stage: int
    """0: ddp."""
    ranks: int
    offload: bool = False
    """Optimizer state and masters, under stage 3 the parameters too, are in host memory."""
    precision: str = "fp32"
    """fp32, bf16 or fp16."""
    master: str = "none"
    """Of ddp: see `MASTER_BYTES`."""
    nvme: bool = False
    """Of what is offloaded, masters and optimizer state are in files on the node's own disk; stage 3 alone."""

    @property
    def engine_bytes(self) -> int:
        """Bytes of an element as the engine holds it: ZeRO casts the module, ddp computes under autocast unless it
        keeps masters."""
        is_cast = self.zero_stage > 0 or self.master != "none"
        return DTYPE_BYTES[self.precision] if is_cast else FP32_BYTES

    @property
    def accumulation_bytes(self) -> int:
        """Bytes of an accumulated gradient element (``data_types.grad_accum_dtype`` of `backends.zero`)."""
        return FP32_BYTES if self.precision == "bf16" and self.zero_stage > 1 else self.engine_bytes


@dataclass(frozen=True)
class ModelStates:
    """Bytes on one rank's device, of the rank that holds most, and what the rank keeps in host memory instead."""

    parameters: int = 0
    gradients: int = 0
    """While they accumulate, between two micro-batches."""
    step_gradients: int = 0
    """While the optimizer steps."""
    masters: int = 0
    """fp32 copies of the trained parameters, or the halves of them that the parameters lack."""
    optimizer: int = 0
    """Per-element state; step counts, 4 bytes a parameter, are left out."""
    buckets: int = 0
    """Communication buffers of the backward pass."""
    kept_buckets: int = 0
    """Those of them that stay between steps."""
    keeps_gradients: bool = False
    """Whether the gradients' memory stays taken between steps."""
    live: int = 0
    """ZeRO-3: parameters that are whole at one time, beside this rank's shards."""
    host: int = 0
    nvme: int = 0
    """In files on the node's own disk."""


def optimizer_states(kind: str, momentum: float = 0.0, state_dtype: str = "fp32") -> int:
    """State per trained element, in fp32 tensors: two moments of Adam (Kingma and Ba, 2015), one momentum of SGD.

    Two in bf16 take what one in fp32 does.
    """
    states = STATES_PER_ELEMENT[kind] if kind != "sgd" or momentum else 0
    return states * DTYPE_BYTES[state_dtype] // FP32_BYTES


def model_states(
    groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int, accumulation: int = 1
) -> ModelStates:
    """Bytes per rank of everything that does not depend on the batch's size.

    Args:
        groups: elements of each trained parameter, by optimizer group, in model order.
        frozen: elements of each parameter that does not train.
        states: what the optimizer keeps per element, in fp32 tensors; see `optimizer_states`.
        accumulation: micro-batches before one optimizer step.
    """
    if sharding.zero_stage == 0:
        return _ddp(groups, frozen, sharding, states)
    if sharding.zero_stage == 3:
        return _zero3(groups, frozen, sharding, states)
    return _zero12(groups, frozen, sharding, states, accumulation)


def _ddp(groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int) -> ModelStates:
    """4 (N + T (1 + states)) bytes for N elements of which T train, whatever the precision, without masters.

    `backends.data_parallel`: the module stays in fp32 and computes under autocast, so it is its own master. With
    ``optimizer.master`` the module and its gradients are in bf16: 2 (N + T) + 4 T states + 2 T (split16) or 4 T (fp32).
    DistributedDataParallel with ``gradient_as_bucket_view`` allocates all gradients once and keeps them; autograd makes
    each one apart before it is copied there, so the largest is alive twice. A single rank has neither.
    """
    s, trained = sharding.engine_bytes, _sum(groups)
    return ModelStates(
        parameters=s * (trained + sum(frozen)),
        gradients=s * trained,
        step_gradients=s * trained,
        masters=MASTER_BYTES[sharding.master] * trained,
        optimizer=FP32_BYTES * states * trained,
        buckets=s * _largest(groups) if sharding.ranks > 1 else 0,
        keeps_gradients=sharding.ranks > 1,
    )


def _zero12(
    groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int, accumulation: int
) -> ModelStates:
    """Stages 1 and 2, deepspeed/runtime/zero/stage_1_and_2.py; s is the engine's bytes an element, R the ranks.

    Each group is flattened and padded to 2R elements; a rank owns 1/R of it. Parameters: s a padded element, s a frozen
    one. Masters: 4 an owned element, in fp32 too (``detach().clone()``). Optimizer state: 4 x states an owned element.
    Gradients, stage 1: s a trained element, whole, until the last micro-batch's are reduced. Stage 2: in fp32 and fp16
    every parameter that overlaps the partition, whole, and a buffer as large for those of the next micro-batch; in bf16
    4 an owned element (``_build_compact_grad_partition_buffer``). The step flattens one group's gradients at a time.
    Reduce buckets: one of 5e8 elements in stage 1, two in stage 2, from the first gradient to the end of the backward.
    Offload (``cpu_offload``): masters, state, gradients and a low-precision copy of the partition are on the host, and
    the accumulated gradients too if there are several micro-batches; the device has a buffer of the largest parameter.
    """
    s, ranks = sharding.engine_bytes, sharding.ranks
    padded = [_round_up(sum(group), FLAT_ALIGNMENT * ranks) for group in groups]
    owned = [total // ranks for total in padded]
    overlapping = s * _most_overlapping(groups, owned, ranks)
    is_compact = sharding.zero_stage == 2 and sharding.accumulation_bytes != s
    reduced = FP32_BYTES * sum(owned) if is_compact else overlapping
    flattened = 0 if is_compact else FP32_BYTES * max(owned, default=0)
    num_buckets = 1 if sharding.zero_stage == 1 else 2
    whole = s * _sum(groups)
    parameters = s * (sum(padded) + sum(frozen))
    buckets = num_buckets * s * REDUCE_BUCKET_ELEMENTS if groups else 0
    if sharding.offload:
        largest = s * _largest(groups)
        accumulated = overlapping if accumulation > 1 else 0
        return ModelStates(
            parameters=parameters,
            gradients=whole if sharding.zero_stage == 1 else largest,
            buckets=buckets + largest,
            host=sum(owned) * (FP32_BYTES * (2 + states) + s) + accumulated + largest,
        )
    if sharding.zero_stage == 2 and accumulation > 1 and not is_compact:
        buckets += reduced
    return ModelStates(
        parameters=parameters,
        gradients=whole if sharding.zero_stage == 1 else reduced,
        step_gradients=reduced + flattened,
        masters=FP32_BYTES * sum(owned),
        optimizer=FP32_BYTES * states * sum(owned),
        buckets=buckets,
    )


def _zero3(groups: Sequence[Sequence[int]], frozen: Sequence[int], sharding: Sharding, states: int) -> ModelStates:
    """Stage 3, deepspeed/runtime/zero/stage3.py; s is the engine's bytes an element, R the ranks.

    Each parameter is padded to R elements; a rank owns 1/R of every one, frozen or not. Masters: 4 an owned trained
    element, in fp32 too. Gradients: one flat buffer of the accumulation type, always there; the step flattens one
    sub-group at a time. One reduce bucket of 5e8 elements, always there. Parameters of at most 1e5 elements stay whole
    after their first use (``mark_persistent_parameters``); of the others up to 1e9 elements and the one that is used.
    Offload: shards, masters, state, gradients and their fp32 copy are on the host. On NVMe see `_swapped`.
    """
    s, ranks = sharding.engine_bytes, sharding.ranks
    trained = [numel for group in groups for numel in group]
    owned = sum(-(-numel // ranks) for numel in trained)
    shards = s * (owned + sum(-(-numel // ranks) for numel in frozen))
    everything = [*trained, *frozen]
    passing = [numel for numel in everything if numel > PERSISTENT_ELEMENTS]
    persistent = sum(everything) - sum(passing)
    live = min(sum(passing), MAX_LIVE_ELEMENTS + max(passing, default=0)) if ranks > 1 or sharding.offload else 0
    bucket = s * REDUCE_BUCKET_ELEMENTS if groups else 0
    gradients = sharding.accumulation_bytes * owned
    if sharding.offload:
        in_files, besides = _swapped(groups, ranks, states) if sharding.nvme else (0, FP32_BYTES * (2 + states) * owned)
        return ModelStates(
            buckets=bucket,
            kept_buckets=bucket,
            live=s * (persistent + live),
            host=shards + gradients + besides,
            nvme=in_files,
        )
    return ModelStates(
        parameters=shards,
        gradients=gradients,
        keeps_gradients=True,
        step_gradients=gradients + FP32_BYTES * min(owned, SUB_GROUP_ELEMENTS),
        masters=FP32_BYTES * owned,
        optimizer=FP32_BYTES * states * owned,
        buckets=bucket,
        kept_buckets=bucket,
        live=s * (persistent + live),
    )


def sub_groups(groups: Sequence[Sequence[int]], ranks: int) -> list[list[int]]:
    """A rank's elements of each trained parameter, by the sub-groups that step at once under ``offload: nvme``: a
    group's parameters in order until they are `SWAP_SUB_GROUP_ELEMENTS` or more (``_create_fp16_sub_groups``)."""
    found: list[list[int]] = []
    for group in groups:
        room = 0
        for numel in group:
            if room <= 0:
                found.append([])
                room = SWAP_SUB_GROUP_ELEMENTS
            found[-1].append(-(-numel // ranks))
            room -= found[-1][-1]
    return found


def _swapped(groups: Sequence[Sequence[int]], ranks: int, states: int) -> tuple[int, int]:
    """(bytes in files, bytes of host memory) of a rank's masters, optimizer state and fp32 gradients on NVMe.

    Files: of each sub-group of 2^20 bytes or more the master and the states, 4 (1 + states) an owned element, rounded
    up; and of each parameter whose owned gradient is as large, that too, 4 an element, rounded down
    (``_adjust_for_misaligned_lengths``). Host: the buffers, each as large as the largest sub-group, which DeepSpeed
    allocates for a model that swaps nothing too; what is smaller than 2^20 bytes, 4 (2 + states) an element.
    """
    in_files = resident = largest = 0
    for sub_group in sub_groups(groups, ranks):
        num_bytes = FP32_BYTES * sum(sub_group)
        largest = max(largest, _round_up(num_bytes, SWAP_ALIGNMENT))
        if num_bytes < SWAPPED_BYTES:
            resident += (2 + states) * num_bytes
            continue
        in_files += (1 + states) * _round_up(num_bytes, SWAP_ALIGNMENT)
        aligned = (FP32_BYTES * numel // SWAP_ALIGNMENT * SWAP_ALIGNMENT for numel in sub_group)
        in_files += sum(gradient for gradient in aligned if gradient >= SWAPPED_BYTES)
    return in_files, resident + SWAP_BUFFERS * largest


def _most_overlapping(groups: Sequence[Sequence[int]], owned: Sequence[int], ranks: int) -> int:
    """Elements of the parameters that any part of a rank's partition lies in, of the rank with most.

    ``get_partition_info``: a parameter on the border of two partitions is held whole by both ranks.
    """
    totals = [0] * ranks
    for group, size in zip(groups, owned, strict=True):
        start = 0
        for numel in group:
            end = start + numel
            if size:
                for rank in range(start // size, min((end - 1) // size, ranks - 1) + 1):
                    totals[rank] += numel
            start = end
    return max(totals)


def _sum(groups: Sequence[Sequence[int]]) -> int:
    return sum(map(sum, groups))


def _largest(groups: Sequence[Sequence[int]]) -> int:
    return max((numel for group in groups for numel in group), default=0)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
