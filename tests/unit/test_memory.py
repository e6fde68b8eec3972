"""Bytes per rank by formula: what must hold for any model, and what DeepSpeed itself estimates."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.costs.disk import disk_plan
from launcher.costs.memory import REDUCE_BUCKET_ELEMENTS, ModelStates, Sharding, model_states, optimizer_states
from launcher.costs.peak import LOGITS_BYTES_PER_ELEMENT, Activations, plan_memory

sizes = st.lists(st.integers(1, 10**7), min_size=1, max_size=6)
grouped = st.lists(sizes, min_size=1, max_size=3)
precisions = st.sampled_from(["fp32", "bf16", "fp16"])
stages = st.integers(0, 3)
STATES = {name: optimizer_states(name) for name in ("adamw", "adam", "sgd")} | {
    "momentum": optimizer_states("sgd", 0.9)
}
kinds = st.sampled_from(sorted(STATES))


def persistent(states: ModelStates) -> int:
    """The model states proper, without gradients and buffers."""
    return states.parameters + states.masters + states.optimizer


def test_states_of_the_optimizers() -> None:
    assert STATES == {"adamw": 2, "adam": 2, "sgd": 0, "momentum": 1}
    assert optimizer_states("adamw", state_dtype="bf16") == 1, "two in bf16 are as one in fp32"


def test_ddp_of_an_adamw_is_16_bytes_a_parameter_in_any_precision() -> None:
    for precision in ("fp32", "bf16"):
        found = model_states([[600], [400]], [50], Sharding(0, 4, precision=precision), 2)
        assert (found.parameters, found.gradients, found.masters, found.optimizer) == (4 * 1050, 4000, 0, 8000)
        assert found.buckets == 4 * 600, "the largest gradient, on its way into its bucket"


@pytest.mark.parametrize(("master", "states", "num_bytes"), [("split16", 2, 14), ("fp32", 2, 16), ("split16", 1, 10)])
def test_masters_of_ddp_stand_beside_a_module_in_bf16(master: str, states: int, num_bytes: int) -> None:
    found = model_states([[600], [400]], [50], Sharding(0, 4, precision="bf16", master=master), states)
    assert persistent(found) + found.gradients == num_bytes * 1000 + 2 * 50
    assert found.buckets == 2 * 600


@pytest.mark.parametrize(("stage", "buckets"), [(1, 1), (2, 2), (3, 1)])
def test_padding_and_buckets_of_zero(stage: int, buckets: int) -> None:
    found = model_states([[5, 6]], [7], Sharding(stage, 4, precision="bf16"), 2)
    assert found.buckets == buckets * 2 * REDUCE_BUCKET_ELEMENTS
    owned = {1: 16 // 4, 2: 16 // 4, 3: 2 + 2}[stage]  # flat groups are padded to 2 x ranks, single parameters to ranks
    assert (found.masters, found.optimizer) == (4 * owned, 8 * owned)
    assert found.parameters == (2 * (16 + 7) if stage < 3 else 2 * (owned + 2))


def test_a_parameter_on_a_border_has_whole_gradients_on_both_sides() -> None:
    """Two ranks own 8 elements each, and the second parameter lies in both halves."""
    found = model_states([[6, 6, 4]], [], Sharding(2, 2), 2)
    assert found.gradients == 4 * max(6 + 6, 6 + 4)


@given(grouped, sizes, precisions, stages, kinds, st.booleans())
def test_more_ranks_never_need_more(
    groups: list[list[int]], frozen: list[int], precision: str, stage: int, kind: str, offload: bool
) -> None:
    """Parameters, masters and state; by padding alone, of 2 elements a group or 1 a parameter and rank, it may rise."""
    found = [
        model_states(groups, frozen, Sharding(stage, ranks, offload and stage > 0, precision), STATES[kind])
        for ranks in (1, 2, 4, 16)
    ]
    tolerance = 16 * (32 * len(groups) + sum(map(len, groups)) + len(frozen))
    for fewer, more in pairwise(found):
        assert persistent(more) <= persistent(fewer) + tolerance
        assert more.host <= fewer.host + tolerance


@given(grouped, sizes, precisions, st.sampled_from([2, 4, 16]), kinds)
def test_a_higher_zero_stage_never_holds_more_model_states(
    groups: list[list[int]], frozen: list[int], precision: str, ranks: int, kind: str
) -> None:
    found = [
        model_states(groups, frozen, Sharding(stage, ranks, False, precision), STATES[kind]) for stage in (1, 2, 3)
    ]
    tolerance = 16 * (2 * ranks * len(groups) + sum(map(len, groups)) + len(frozen))
    for lower, higher in pairwise(found):
        assert persistent(higher) <= persistent(lower) + tolerance


def test_zero1_in_fp32_has_masters_that_ddp_has_not() -> None:
    """Why the property above begins at stage 1: with plain SGD the copies cost more than sharding saves."""
    ddp, zero1 = (model_states([[1000]], [], Sharding(stage, 2), 0) for stage in (0, 1))
    assert persistent(zero1) - persistent(ddp) == 4 * 500


@given(grouped, st.integers(0, 5), precisions, stages, st.sampled_from([1, 2, 8]), kinds)
def test_freezing_never_adds(
    groups: list[list[int]], index: int, precision: str, stage: int, ranks: int, kind: str
) -> None:
    index %= len(groups)
    frozen, rest = groups[index], [group for number, group in enumerate(groups) if number != index]
    before = model_states(groups, [], Sharding(stage, ranks, False, precision), STATES[kind])
    after = model_states(rest, frozen, Sharding(stage, ranks, False, precision), STATES[kind])
    for field in dataclasses.fields(ModelStates):
        assert getattr(after, field.name) <= getattr(before, field.name), field.name


@settings(deadline=None)  # the first call imports DeepSpeed
@given(st.integers(1, 10**6))
def test_deepspeeds_own_estimates(blocks: int) -> None:
    """For 16-bit training with Adam: equal for ZeRO-3; for ZeRO-2 theirs has 2 bytes more of an owned element, the
    16-bit gradients, which with ``contiguous_gradients`` are in the buckets, counted by size instead."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    ranks = 8
    total = 2 * ranks * blocks
    zero2, zero3 = (model_states([[total]], [], Sharding(stage, ranks, False, "bf16"), 2) for stage in (2, 3))
    _, theirs2 = estimate_zero2_model_states_mem_needs(total, ranks, 1, cpu_offload=False)
    _, theirs3, _ = estimate_zero3_model_states_mem_needs(total, 0, ranks, 1, cpu_offload=False)
    assert persistent(zero2) + zero2.gradients == theirs2 - 2 * total // ranks
    assert persistent(zero3) + zero3.gradients == theirs3


def test_torchtitans_llama_8b_on_8_and_on_128_gpus() -> None:
    """82.4 and 67.0 GiB at the same local batch (torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and
    3): what differs are the shards, of fp32 parameters, gradients and AdamW's moments under FSDP2, which are ddp's over
    the ranks. What does not differ is selective checkpointing of single operators, which is not modelled here."""
    llama = 8_030_261_248
    whole = model_states([[llama]], [], Sharding(0, 1), 2)
    sharded = {ranks: (persistent(whole) + whole.gradients) / ranks for ranks in (8, 128)}
    assert (sharded[8] - sharded[128]) / 2**30 == pytest.approx(82.4 - 67.0, rel=0.1)


def test_offload_leaves_the_device_what_deepspeed_says() -> None:
    """ZeRO-2: the 16-bit parameters; ZeRO-3: nothing but what is gathered. On the host 16 and 18 bytes an element."""
    total, ranks = 16_000, 8
    zero2, zero3 = (model_states([[total]], [], Sharding(stage, ranks, True, "bf16"), 2) for stage in (2, 3))
    assert persistent(zero2) == 2 * total
    assert persistent(zero3) == 0
    assert zero3.host == (2 + 4 + 4 + 4 + 8) * total // ranks
    assert zero2.host == (4 + 4 + 8 + 2) * total // ranks + 2 * total


# --- the peak ---------------------------------------------------------------------------------------------------------
STATES_OF_A_STAGE = ModelStates(parameters=100, gradients=50, step_gradients=70, optimizer=200, live=10, buckets=5)


def test_the_peak_is_the_largest_moment() -> None:
    activations = Activations(saved=1000, largest=30, logits=4, logits_forward=800, buffers=2)
    found = plan_memory(STATES_OF_A_STAGE, activations, 2.0, is_gpu=False)
    margin = found.margin_bytes
    backward = 100 + 200 + 50 + 1000 + LOGITS_BYTES_PER_ELEMENT * 4 + 10 + 2 + 60
    assert {name: sum(parts.values()) for name, parts in found.moments.items()} == {
        "backward": backward + margin,
        "reduction": backward - (LOGITS_BYTES_PER_ELEMENT - 4) * 4 + 5 + margin,
        "step": 100 + 200 + 70 + 10 + 2 + margin,
        "evaluation": 100 + 200 + 2 * 800 + 10 + 2 + 60 + margin,
    }
    assert (found.peak_at, found.peak_bytes) == ("evaluation", 1972 + margin)
    assert plan_memory(STATES_OF_A_STAGE, activations, 0.0, is_gpu=False).peak_at == "backward"
    assert plan_memory(STATES_OF_A_STAGE, Activations(), 0.0, is_gpu=False).peak_at == "step"


def test_a_gpu_has_a_context_and_fragments() -> None:
    small, large = (
        plan_memory(STATES_OF_A_STAGE, Activations(saved=saved), 0.0, is_gpu=True).margin_bytes for saved in (0, 10**9)
    )
    assert small >= 2**30
    assert large - small == pytest.approx(0.05 * 10**9, rel=1e-3)


def test_recomputation_has_one_blocks_activations_and_no_loss() -> None:
    activations = Activations(saved=1000, recomputed=300, largest=30, logits=1, logits_forward=8)
    found = plan_memory(STATES_OF_A_STAGE, activations, 0.0, is_gpu=False)
    assert found.peak_at == "recomputation"
    parts = found.moments["recomputation"]
    assert (parts["activations"], parts["logits"], parts["buffers"]) == (1300, 0, 5 + 10 + 60)
    assert found.activations_bytes == 1300


def test_checkpoints_for_any_ranks_hold_model_and_optimizer_besides() -> None:
    """What tests/slurm's two-layer BERT left on the disk under zero2 on one rank, with slurm.min_nodes, was 28.4 MB."""
    own, any_ranks = (
        disk_plan([[1_011_459]], [], Sharding(2, 1), 2, named_states=2, keep=2, chooses=False, for_any_ranks=whether)
        for whether in (False, True)
    )
    assert any_ranks.checkpoint_bytes - own.checkpoint_bytes == (4 + 8) * 1_011_459
    assert any_ranks.checkpoint_bytes == pytest.approx(28.4e6, rel=0.01)
    assert any_ranks.most_bytes == own.most_bytes + 3 * (4 + 8) * 1_011_459
