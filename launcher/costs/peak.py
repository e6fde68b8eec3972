"""The peak of a rank's memory over one step: model states, activations, the loss and what is not counted.

Owns the moments in which most is alive, the margins, and the numbers that go into the plan. Pure, as `memory`, whose
model states it adds to; `models.activations` counts what it needs of the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from launcher.costs.memory import FP32_BYTES, ModelStates
from launcher.costs.step_time import NO_WORK, Work

GIB = 2**30
CONTEXT_BYTES = 1 * GIB
"""Of a GPU process outside of torch's allocator: CUDA context, loaded kernels, libraries. Measured on an H100: 0.75 GiB
under ddp, 1.3 GiB with DeepSpeed (docs/memory.md); NCCL's buffers of several ranks were not among it."""
PROCESS_BYTES = 850 * 2**20
"""Resident memory of a CPU rank before its first model: measured, `python -m benchmarks.memory --process`."""
FRAGMENTATION = 0.05
"""Share of what is taken and freed in each step that the caching allocator cannot use again. An assumption."""
LOGITS_BYTES_PER_ELEMENT = 12
"""In the loss's backward, in fp32: the saved log-probabilities, the gradients before and after the log-softmax."""


class NotCounted(Exception):
    """The activations of this model cannot be counted; the message says why."""


@dataclass(frozen=True)
class Routed:
    """Bytes that a mixture of experts saves, by where its routers send the tokens.

    Every rank computes all of its tokens with as many experts as each token is given, wherever those are, so the two
    differ by what depends on the number of experts that are met, such as 16-bit copies of their weights.
    """

    even: int
    """Each expert gets an equal share."""
    worst: int
    """All tokens go to the same experts."""


@dataclass(frozen=True)
class Activations:
    """What a micro-batch's forward pass leaves behind; see `activations.count`."""

    saved: int = 0
    """Bytes that autograd keeps for the backward."""
    recomputed: int = 0
    """Under gradient checkpointing: bytes besides, of the block that keeps most, while its backward runs."""
    largest: int = 0
    """Bytes of the largest tensor among them."""
    logits: int = 0
    """Elements of the logits, if there is a backward through them."""
    logits_forward: int = 0
    """Bytes of a loss without a backward: the logits and their log-softmax in fp32, and the logits as they came where
    the module is in 16 bits. (Under ddp Accelerate turns them into fp32 before anybody else has them.)"""
    buffers: int = 0
    """Bytes of the module's buffers."""
    work: Work = NO_WORK
    """What the forward and the backward compute."""
    routed: Routed | None = None
    """Of a model with experts; ``saved`` is the larger of the two."""
    bound: str = ""
    """Why this is an upper bound and not a count; empty: it is counted."""
    assumed: tuple[str, ...] = ()
    """Where the model looks at values that depend on its weights: what was taken for granted, in words."""


class MemoryPlan(BaseModel):
    """Bytes of one rank in one stage. The categories are the most that each takes; they do not all peak together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peak_bytes: int
    """The largest of ``moments``."""
    peak_at: str
    """Which of them: backward, reduction, recomputation, step or evaluation."""
    parameters_bytes: int
    gradients_bytes: int
    master_bytes: int
    """fp32 copies of trained parameters, or the halves of them that the parameters lack."""
    optimizer_bytes: int
    activations_bytes: int
    """What autograd saves in one micro-batch, without the loss; of checkpointed blocks only the largest one's."""
    logits_bytes: int
    """The loss over the labels or the vocabulary, and its gradients."""
    buffers_bytes: int
    """Communication buckets, gathered parameters, buffers of the module, gradients on their way."""
    margin_bytes: int
    """For what is not counted: CUDA's context and fragmentation, or a CPU rank's process."""
    host_bytes: int
    """Of this rank in host memory, because of offload."""
    nvme_bytes: int = 0
    """Of this rank in files on the node's own disk, because of ``offload: nvme``."""
    activations_are: str = "counted"
    """counted, or a bound: what no model of these sizes exceeds."""
    even_routing_bytes: int | None = None
    """Activations of a mixture whose experts get equal shares of the tokens; None: the model has no experts."""
    worst_routing_bytes: int | None = None
    """The same, where all tokens go to the same experts. The larger of the two is in the peak."""
    moments: dict[str, dict[str, int]]
    """Moment -> category -> bytes alive then."""


def breakdown(memory: MemoryPlan) -> str:
    """The parts of the peak, the largest first, in a line."""
    parts = sorted(memory.moments[memory.peak_at].items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {num_bytes / GIB:.2f} GiB" for name, num_bytes in parts if num_bytes)
    return f"{memory.peak_bytes / GIB:.2f} GiB in the {memory.peak_at}: {named}"


def plan_memory(states: ModelStates, activations: Activations, evaluated_batches: float, *, is_gpu: bool) -> MemoryPlan:
    """The peak of a stage over the moments in which most is alive.

    - backward: at its beginning, when all activations and the loss are there, and gradients of earlier micro-batches.
      Gradients take the place of activations after that; for a lone micro-batch under ddp on one rank or zero1, whose
      gradients come into being meanwhile, both are counted whole, which is too much by the smaller of the two at most.
    - reduction: the first parameter's gradient is there, and buckets are made for it (DeepSpeed's ``setup_buckets``);
      of the loss the gradient of the logits is left, in fp32.
    - recomputation, under gradient checkpointing: the loss is gone, and one block's activations are there again.
    - step: no activations; the gradients in the form in which the optimizer reads them.
    - evaluation: no activations and no gradients but those that are never freed; ``evaluated_batches`` times the
      logits of a micro-batch and their loss. 0 without an evaluation.

    Two tensors as large as the largest saved one are on their way in each pass: a gradient, and what is made of it.
    """
    passing = activations.buffers + 2 * activations.largest
    kept = {"parameters": states.parameters, "masters": states.masters, "optimizer": states.optimizer}
    logits = LOGITS_BYTES_PER_ELEMENT * activations.logits
    moments = {
        "backward": kept
        | {
            "gradients": states.gradients,
            "activations": activations.saved,
            "logits": logits,
            "buffers": states.kept_buckets + states.live + passing,
        },
        "step": kept
        | {"gradients": states.step_gradients, "buffers": states.kept_buckets + states.live + activations.buffers},
    }
    reducing = {"buffers": states.buckets + states.live + passing}
    if states.buckets > states.kept_buckets:
        moments["reduction"] = moments["backward"] | reducing | {"logits": FP32_BYTES * activations.logits}
    if activations.recomputed:
        again = {"activations": activations.saved + activations.recomputed, "logits": 0}
        moments["recomputation"] = moments["backward"] | reducing | again
    if evaluated_batches:
        moments["evaluation"] = kept | {
            "gradients": states.gradients if states.keeps_gradients else 0,
            "logits": int(evaluated_batches * activations.logits_forward),
            "buffers": states.kept_buckets + states.live + passing,
        }
    for parts in moments.values():
        fixed = sum(kept.values()) + states.kept_buckets
        parts["margin"] = (
            CONTEXT_BYTES + int(FRAGMENTATION * (sum(parts.values()) - fixed)) if is_gpu else PROCESS_BYTES
        )
    peak_at = max(moments, key=lambda name: sum(moments[name].values()))
    return MemoryPlan(
        peak_bytes=sum(moments[peak_at].values()),
        peak_at=peak_at,
        parameters_bytes=states.parameters,
        gradients_bytes=max(states.gradients, states.step_gradients),
        master_bytes=states.masters,
        optimizer_bytes=states.optimizer,
        activations_bytes=activations.saved + activations.recomputed,
        logits_bytes=max(logits, moments.get("evaluation", {}).get("logits", 0)),
        buffers_bytes=max(parts["buffers"] for parts in moments.values()),
        margin_bytes=moments[peak_at]["margin"],
        host_bytes=states.host,
        nvme_bytes=states.nvme,
        activations_are="a bound" if activations.bound else "counted",
        even_routing_bytes=activations.routed.even + activations.recomputed if activations.routed else None,
        worst_routing_bytes=activations.routed.worst + activations.recomputed if activations.routed else None,
        moments=moments,
    )
