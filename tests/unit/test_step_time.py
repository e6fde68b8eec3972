"""The cost model: its formulas by hand, what it says of published runs, and how it moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.costs import gpu_kinds, step_time
from launcher.costs.memory import Sharding
from launcher.costs.step_time import Load, Machine, Work

GIGA, TERA = 1e9, 1e12
PLAIN = Machine(
    flops=100 * TERA, memory=GIGA * 1000, link=GIGA * 100, pcie=GIGA * 10, host=GIGA * 50, nvme=GIGA * 2,
    launch_s=0.0,
    assumptions=(),
)  # fmt: skip
LOAD = Load(trained=3_000_000_000, frozen=1_000_000_000, tensors=0, optimizer_states=2)
WORK = Work(forward=1e13, backward=2e13, again=1e13, kernels=0)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, (2 * 0.75 * 4 * 3e9, 0, 0)),
        (1, (0.75 * 2 * 3e9, 0, 0.75 * 2 * 3e9)),
        (2, (0.75 * 2 * 3e9, 0, 0.75 * 2 * 3e9)),
        (3, (0.75 * 2 * 3e9, 2 * 0.75 * 2 * 4e9, 0)),
    ],
)
def test_bytes_over_the_links(stage: int, expected: tuple[float, float, float]) -> None:
    assert step_time.link_bytes(Sharding(stage, 4, precision="bf16"), LOAD) == expected
    assert step_time.link_bytes(Sharding(stage, 1, precision="bf16"), LOAD) == (0, 0, 0)


def test_the_parts_of_a_step_by_hand() -> None:
    """Two micro-batches under ZeRO-2 with offload on 4 ranks in bf16."""
    found = step_time.step_time(WORK, Sharding(2, 4, True, "bf16"), LOAD, 2, PLAIN)
    assert found.compute == pytest.approx(2 * 0.3)
    assert found.recomputation == pytest.approx(2 * 0.1)
    gradients = 0.75 * 2 * 3e9 / 1e11
    assert found.communication == pytest.approx(2 * 0.2 * gradients + gradients)
    owned = 3e9 / 4
    assert found.optimizer == pytest.approx(owned * (28 + 2) / 5e10), "in the host's memory"
    assert found.offload == pytest.approx((2 + 1) * 2 * owned / 1e10)
    parts = (found.compute, found.recomputation, found.communication, found.optimizer, found.offload)
    assert found.seconds == pytest.approx(sum(parts))


def test_a_swapped_step_reads_and_writes_the_nodes_disk() -> None:
    """Gradient, master and two states of every owned element, both ways, on top of what the host's offload takes."""
    host, disk = (
        step_time.step_time(WORK, Sharding(3, 4, True, "bf16", nvme=on), LOAD, 2, PLAIN) for on in (False, True)
    )
    assert disk.offload - host.offload == pytest.approx(2 * 16 * 3e9 / 4 / 2e9)
    assert disk.seconds - host.seconds == pytest.approx(disk.offload - host.offload)


def test_what_cannot_hide_is_waited_for() -> None:
    """No more of a collective hides than there is compute; nothing of it under stage 1."""
    slow = step_time.step_time(Work(), Sharding(0, 4), LOAD, 1, PLAIN)
    assert slow.communication == pytest.approx(2 * 0.75 * 4 * 3e9 / 1e11)
    zero1 = step_time.step_time(WORK, Sharding(1, 4), LOAD, 1, PLAIN)
    assert zero1.communication == pytest.approx(2 * 0.75 * 4 * 3e9 / 1e11)


def test_many_small_kernels_take_their_launches() -> None:
    machine = step_time.machine(
        "fp32", nodes=1, ranks_per_node=1, gpu_kind="NVIDIA H100 80GB HBM3", on_gpu=True, threads=1
    )
    few, many = (
        step_time.step_time(Work(1e9, 2e9, 0.0, kernels), Sharding(0, 1), Load(1000, 0, 10, 2), 1, machine)
        for kernels in (0, 10_000)
    )
    assert few.compute == pytest.approx(3e9 / (0.6 * 67e12))
    assert many.compute == pytest.approx(10_000 * step_time.LAUNCH_S)


@pytest.mark.parametrize(("gpus", "tokens_per_second"), [(8, 5762), (128, 5605)])
def test_torchtitans_llama_8b(gpus: int, tokens_per_second: float) -> None:
    """Tables 1 and 3 of its llama3_h100_202412_torchtitan.md: 2 texts of 8192 tokens a GPU, FSDP2, bf16. The share of
    the peak comes from there, so compute must agree; that links and optimizer add little is the model's own."""
    elements, layers, hidden, length = 8_030_261_248, 32, 4096, 8192
    embedding = 128256 * 4096
    forward = 2 * 2 * length * (elements - embedding) + 4 * 2 * layers * hidden * length**2
    machine = step_time.machine(
        "bf16", nodes=gpus // 8, ranks_per_node=8, gpu_kind="H100", on_gpu=True, threads=1
    )  # fmt: skip
    found = step_time.step_time(
        Work(forward, 2 * forward), Sharding(3, gpus, precision="bf16"), Load(elements, 0, 291, 2), 1, machine
    )
    assert 2 * length / found.seconds == pytest.approx(tokens_per_second, rel=0.15)


@given(st.integers(0, 3), st.sampled_from([2, 8, 64]), st.integers(1, 16), st.booleans())
def test_more_of_anything_never_takes_less(stage: int, ranks: int, accumulation: int, offload: bool) -> None:
    sharding = Sharding(stage, ranks, offload and stage > 0, "bf16")

    def seconds(work: Work = WORK, load: Load = LOAD, accumulation: int = accumulation) -> float:
        return step_time.step_time(work, sharding, load, accumulation, PLAIN).seconds

    assert seconds() <= seconds(accumulation=accumulation + 1)
    assert seconds() <= seconds(work=WORK.times(2))
    assert seconds() <= seconds(load=Load(LOAD.trained * 2, LOAD.frozen, 0, 2)) + 1e-9
    assert seconds(work=Work(1e13, 2e13)) <= seconds()


@pytest.mark.parametrize(
    ("product", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100-PCIe"), ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("NVIDIA A10", "A10"),
        ("NVIDIA H100 80GB HBM3+Tesla T4", "T4"), ("NVIDIA GB999", None),
    ],
)  # fmt: skip
def test_products_are_found(product: str, kind: str | None) -> None:
    found = gpu_kinds.find(product)
    assert (found.name if found else None) == kind


def test_every_name_of_the_table_is_found_by_itself() -> None:
    for kind in gpu_kinds.KINDS:
        assert gpu_kinds.find(kind.name) is kind
