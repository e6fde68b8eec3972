"""How long an optimizer step takes: compute, links, recomputation, the optimizer, offload. A stated model, no promise.

Owns the cost model by which ``auto`` tells the faster of two ways, and the words in which its assumptions are told.
Pure functions of numbers: `plan.search` brings them. Every constant names what it was read from, or says that it is
assumed. Not modelled: data that is late, evaluations, checkpoints, the start-up of a run, memory-bound kernels one by
one (the share of the peak that is reached stands for them).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from launcher.costs.cpu_speed import CpuSpeed
from launcher.costs.gpu_kinds import SUPPOSED, GpuKind, find
from launcher.costs.memory import FP32_BYTES, Sharding

REACHED = {"bf16": 0.33, "fp16": 0.33, "fp32": 0.6}
"""Share of a GPU's peak that a whole training step reaches (MFU). bf16: torchtitan's Llama 3.1 8B on 8 and 128 H100
without torch.compile (its benchmarks/llama3_h100_202412_torchtitan.md). fp32, far from the memory's limit: assumed."""
CPU_FLOPS_PER_THREAD = 3.0e10
"""What a training step in fp32 reaches on one thread of a server's CPU: assumed, with a measurement in docs/memory.md.
bf16 is taken to be no faster."""
LAUNCH_S = 6e-6
"""Host time of one kernel in eager PyTorch: assumed. A step cannot be shorter than its kernels' launches."""
HOOKS_S = {0: 0.0, 1: 2e-5, 2: 4e-5, 3: 1.5e-4}
"""Host time that DeepSpeed's hooks take of each parameter tensor in each micro-batch, by ZeRO stage: assumed."""
LINK_REACHED = 0.8
"""Share of a link's peak that large collectives reach: assumed, as nccl-tests report for NVLink."""
OVERLAP = 0.8
"""Most of the gradients' way that hides behind the backward, under ddp, ZeRO-2 and 3 (``overlap_comm``): assumed."""
GATHER_OVERLAP = 0.5
"""The same of ZeRO-3's parameters, which a module waits for if they were not fetched ahead: assumed."""
NODE_LINK = {"B200": 5.0e10, "H200": 5.0e10, "H100": 5.0e10, "A100": 2.5e10}
OTHER_NODE_LINK = 3.0e9
"""Bytes a second of one GPU to other nodes. NVIDIA's DGX reference systems: 400 Gbit/s a GPU (H100 and later), 200
(A100). Others: 100 Gbit/s that four GPUs share."""
MEMORY_REACHED = 0.8
"""Share of the memory's bandwidth that the optimizer's kernel reaches (kernels/README.md)."""
HOST_BANDWIDTH = 2.0e11
"""Of a node's main memory, bytes a second, shared by its ranks; where the optimizer steps on the host: assumed."""
NVME_BANDWIDTH = 3.0e9
"""Of a node's own disk, bytes a second, shared by its ranks, read and written in turn: assumed, a PCIe 4.0 x4 drive."""
LOOPBACK = 2.0e9
"""Between CPU ranks, bytes a second of each: gloo over the loopback; assumed."""

UNCHECKED = "unknown on this hardware; use it to compare settings"
CHECKED = {("H100", "bf16"): "8% on H100 in bf16 (docs/memory.md)"}
"""(GPU, precision) -> how far estimates were off where a measurement of whole steps stands in docs/memory.md."""
CPU_ERROR = "up to 50%, mostly too low, under ddp on CPU ranks (docs/memory.md)"
"""By `python -m benchmarks.step_time`, whose table stands in docs/memory.md."""


@dataclass(frozen=True)
class Work:
    """Arithmetic of one micro-batch, in floating-point operations; see `models.flops`."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0
    """Of that, what gradient checkpointing computes a second time."""
    kernels: int = 0
    """Operators of the forward and the backward, whatever the size of the micro-batch."""
    moved: float = 0.0
    """Bytes that operators other than products read and write, forward and backward."""

    def times(self, factor: float) -> Work:
        """Of a micro-batch this many times as large."""
        return Work(
            factor * self.forward, factor * self.backward, factor * self.again, self.kernels, factor * self.moved
        )


NO_WORK = Work()


@dataclass(frozen=True)
class Machine:
    """One rank's share of the hardware; bytes and operations a second."""

    flops: float
    memory: float
    link: float
    """To the ranks it exchanges gradients with; over several nodes the slower of the two ways."""
    pcie: float
    host: float
    nvme: float
    launch_s: float
    assumptions: tuple[str, ...]
    error: str = UNCHECKED
    """How far the estimate was off where it was compared with a measurement."""
    moves: float | None = None
    """Bytes a second of operators that are no products, where their time, the products' and the launches' add up: on a
    CPU that was measured. None: products alone count, or the launches where they take longer."""


@dataclass(frozen=True)
class Load:
    """A stage's parameters, as time knows them."""

    trained: int
    """Elements."""
    frozen: int
    tensors: int
    """Parameter tensors."""
    optimizer_states: int
    """Tensors of the parameter's size that the optimizer keeps."""


class StepTime(BaseModel):
    """Seconds of one optimizer step of one rank; the parts sum up to ``seconds``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    compute: float
    """Forward and backward, or the launches of their kernels where those take longer."""
    recomputation: float
    communication: float
    """That no compute hides."""
    optimizer: float
    offload: float
    """Between the device and the host, and between the host and the node's own disk."""
    assumptions: list[str]
    error: str = UNCHECKED
    """See `Machine.error`."""


def machine(
    precision: str, *, nodes: int, ranks_per_node: int, gpu_kind: str | None, on_gpu: bool, threads: int,
    cpu_speed: CpuSpeed | None = None,
) -> Machine:  # fmt: skip
    """The hardware of a rank.

    Args:
        gpu_kind: product name; one that the table does not have is taken to be an A100.
        threads: of a CPU rank.
        cpu_speed: of the CPUs, where it was measured.
    """
    if not on_gpu and cpu_speed is not None:
        return _measured_cpu(cpu_speed, ranks_per_node)
    if not on_gpu:
        share = HOST_BANDWIDTH / ranks_per_node / 8  # a small machine's two channels instead of a server's sixteen
        told = f"{CPU_FLOPS_PER_THREAD / 1e9:.0f} GFLOP/s on each of {threads} threads a rank"
        return Machine(
            flops=threads * CPU_FLOPS_PER_THREAD, memory=share, link=LOOPBACK, pcie=share, host=share,
            nvme=NVME_BANDWIDTH / ranks_per_node, launch_s=LAUNCH_S, assumptions=(told,),
        )  # fmt: skip
    known = find(gpu_kind) if gpu_kind else None
    kind = known or find(SUPPOSED)
    assert kind is not None, "the table has it"
    told = "" if known else f"{gpu_kind or 'a GPU of unknown kind'} taken for {kind.name} (--gpu-kind); "
    peak = kind.flops[precision] if precision in kind.flops else kind.flops["fp16"]
    link = kind.link if nodes == 1 else min(kind.link, _node_link(kind))
    assumptions = [f"{told}{REACHED[precision]:.0%} of {kind.name}'s {peak / 1e12:.4g} TFLOP/s in {precision}"]
    if nodes * ranks_per_node > 1:
        where = "within the node" if nodes == 1 else "between nodes"
        assumptions.append(f"{LINK_REACHED:.0%} of {link / 1e9:.4g} GB/s {where}, {OVERLAP:.0%} of it hidden at most")
    return Machine(
        flops=peak * REACHED[precision], memory=kind.bandwidth, link=link * LINK_REACHED,
        pcie=kind.pcie * LINK_REACHED, host=HOST_BANDWIDTH / ranks_per_node,
        nvme=NVME_BANDWIDTH / ranks_per_node, launch_s=LAUNCH_S, assumptions=tuple(assumptions),
        error=CHECKED.get((kind.name, precision), UNCHECKED) if known else UNCHECKED,
    )  # fmt: skip


def _measured_cpu(speed: CpuSpeed, ranks_per_node: int) -> Machine:
    """A rank's share of what the CPUs of its node were measured to reach."""
    bandwidth = speed.bandwidth / ranks_per_node
    told = (
        f"{speed.flops / 1e9:.3g} GFLOP/s of products, {speed.bandwidth / 1e9:.3g} GB/s and "
        f"{speed.launch_s * 1e6:.2g} µs an operator, measured on this machine's CPU"
    )
    return Machine(
        flops=speed.flops / ranks_per_node, memory=bandwidth, link=LOOPBACK, pcie=bandwidth, host=bandwidth,
        nvme=NVME_BANDWIDTH / ranks_per_node, launch_s=speed.launch_s, assumptions=(told,), error=CPU_ERROR,
        moves=bandwidth,
    )  # fmt: skip


def _node_link(kind: GpuKind) -> float:
    return next((rate for name, rate in NODE_LINK.items() if kind.name.startswith(name)), OTHER_NODE_LINK)


def step_time(work: Work, sharding: Sharding, load: Load, accumulation: int, machine: Machine) -> StepTime:
    """Seconds of an optimizer step of ``accumulation`` micro-batches of ``work`` each."""
    launches = work.kernels * machine.launch_s + load.tensors * HOOKS_S[sharding.zero_stage]
    products = (work.forward + work.backward) / machine.flops
    compute = max(products, launches)
    if machine.moves is not None:
        compute = products + (work.moved + accumulated_bytes(load, accumulation)) / machine.moves + launches
    compute += cast_bytes(sharding, load) / machine.memory
    again = work.again / machine.flops
    gradients, gathered, updated = (num_bytes / machine.link for num_bytes in link_bytes(sharding, load))
    hidden = (OVERLAP if sharding.zero_stage != 1 else 0.0) * gradients + GATHER_OVERLAP * gathered
    # Under ddp and stage 1 gradients travel in the last micro-batch alone.
    times = accumulation if sharding.zero_stage >= 2 else 1
    exposed = times * (gradients + gathered - min(hidden, compute + again)) + updated
    to_host, from_host = pcie_bytes(sharding, load, accumulation)
    offload = (to_host + from_host) / machine.pcie
    assumptions = list(machine.assumptions)
    if sharding.offload:
        links = f"{machine.pcie / 1e9:.3g} GB/s over PCIe and {machine.host / 1e9:.3g} GB/s of host memory a rank"
        assumptions.append(links)
    if sharding.nvme:
        offload += nvme_bytes(sharding, load) / machine.nvme
        assumptions.append(f"{machine.nvme / 1e9:.3g} GB/s of the node's own disk a rank")
    stepping = optimizer_bytes(sharding, load) / (machine.host if sharding.offload else machine.memory * MEMORY_REACHED)
    parts = {
        "compute": accumulation * compute,
        "recomputation": accumulation * again,
        "communication": exposed,
        "optimizer": stepping,
        "offload": offload,
    }
    is_checked = machine.moves is None or sharding.zero_stage == 0  # of CPU ranks ddp alone was measured
    error = machine.error if is_checked else UNCHECKED
    return StepTime(seconds=sum(parts.values()), assumptions=assumptions, error=error, **parts)


def link_bytes(sharding: Sharding, load: Load) -> tuple[float, float, float]:
    """Bytes that a rank sends: (gradients, gathered parameters: in a micro-batch that communicates; in the step).

    With R ranks, s bytes an element of the engine, N elements of which T train; a ring reduce-scatter or all-gather of
    n bytes sends (R - 1)/R n from each rank, an all-reduce twice that (Patarasuk and Yuan, 2009; Rajbhandari et al.,
    "ZeRO", 2020, section 7).

    - ddp: an all-reduce of gradients, 4 T or with masters s T, once a step (``no_sync`` before).
    - stage 1: gradients to their owners once a step, s T; the updated parameters to all, s T.
    - stage 2: gradients to their owners in every micro-batch, and the same gather in the step.
    - stage 3: in every micro-batch parameters gathered for the forward and for the backward, 2 s N, gradients to their
      owners, s T; nothing in the step.
    """
    ring = (sharding.ranks - 1) / sharding.ranks
    s = sharding.engine_bytes
    if sharding.zero_stage == 0:
        return 2 * ring * s * load.trained, 0.0, 0.0
    if sharding.zero_stage == 3:
        return ring * s * load.trained, 2 * ring * s * (load.trained + load.frozen), 0.0
    return ring * s * load.trained, 0.0, ring * s * load.trained


def accumulated_bytes(load: Load, accumulation: int) -> float:
    """Bytes of a micro-batch's gradients that are added to those before: two read and one written, of all but the first
    of a step; each micro-batch has its share of them."""
    return 3 * FP32_BYTES * load.trained * (accumulation - 1) / accumulation


def cast_bytes(sharding: Sharding, load: Load) -> float:
    """Bytes that autocast moves in each forward under ddp in low precision: every weight read in fp32, written in 2
    bytes. ZeRO, and ddp with masters, hold the module in low precision."""
    is_low = sharding.precision != "fp32" and sharding.engine_bytes == FP32_BYTES
    return (FP32_BYTES + 2) * (load.trained + load.frozen) if is_low else 0


def optimizer_bytes(sharding: Sharding, load: Load) -> float:
    """Bytes that a rank's optimizer moves in a step: parameter or master and states read and written, gradients read,
    all fp32 (kernels/README.md: 28 an element for AdamW), and the low-precision copy written. With masters under ddp
    gradients are in bf16, and split ones have no copy. Of the elements the rank owns: all under ddp, 1/R under ZeRO."""
    owned = load.trained / (sharding.ranks if sharding.zero_stage else 1)
    gradient = FP32_BYTES if sharding.zero_stage else sharding.engine_bytes
    copy = sharding.engine_bytes if sharding.zero_stage or sharding.master == "fp32" else 0
    return owned * (FP32_BYTES * (2 + 2 * load.optimizer_states) + gradient + copy)


def pcie_bytes(sharding: Sharding, load: Load, accumulation: int) -> tuple[float, float]:
    """Bytes of a rank between device and host in a step, (to the host, from it), where the states are offloaded.

    Gradients of the owned elements go to the host, in stage 1 once a step, above in every micro-batch; updated ones
    come back. Under stage 3 a rank's shards of the parameters come in every micro-batch, for the forward and for the
    backward (Ren et al., "ZeRO-Offload", 2021, section 4; Rajbhandari et al., "ZeRO-Infinity", 2021).
    """
    if not sharding.offload:
        return 0.0, 0.0
    s, owned = sharding.engine_bytes, load.trained / sharding.ranks
    gradients = s * owned * (1 if sharding.zero_stage == 1 else accumulation)
    if sharding.zero_stage < 3:
        return gradients, s * owned
    return gradients, accumulation * 2 * s * (load.trained + load.frozen) / sharding.ranks


def nvme_bytes(sharding: Sharding, load: Load) -> float:
    """Bytes of a rank to and from the node's own disk in a step: of each element it owns gradient, master and states
    written and read once, in fp32; nothing of it is taken to be hidden (Rajbhandari et al., "ZeRO-Infinity", 2021)."""
    return 2 * FP32_BYTES * (2 + load.optimizer_states) * load.trained / sharding.ranks
