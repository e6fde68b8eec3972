"""What one call of a kernel gets: tensors of one group with one step count, one set of dtypes and one layout each.

Owns None gradients, DTensor shards and mismatched strides. Refuses sparse, complex and float64 tensors.
`FusedAdamW.step` calls it; nothing here outlives the step, because DeepSpeed and FSDP swap tensors between steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement

from thawline_kernels.reference import Hyper

DTYPES = (torch.float32, torch.bfloat16)
_WRITTEN = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "low")


@dataclass
class Batch:
    """Lists of equal length, one entry a parameter; ``extras``, ``peaks`` and ``keys`` may be empty instead."""

    hyper: Hyper
    step: int
    """Number of the step about to be taken; the first is 1."""
    states: list[dict[str, Any]] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    """What is stepped: the parameters, or their fp32 masters."""
    extras: list[Tensor] = field(default_factory=list)
    """Low halves of split parameters, or the bf16 copies of masters."""
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)
    """``max_exp_avg_sq`` of AMSGrad."""
    keys: list[int] = field(default_factory=list)
    """Of the random bits that round bf16 second moments."""
    positions: list[int] = field(default_factory=list)
    """Of the parameters in their group."""
    owners: list[Tensor] = field(default_factory=list)
    """The parameters as the group has them."""
    relaid: list[Tensor] = field(default_factory=list)
    """Those whose gradient was copied into the parameter's layout."""
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(parameter, the dense copy of it that is stepped in its place)."""
    wrappers: list[Tensor] = field(default_factory=list)
    """DTensors whose shards are written to."""
    sharding: tuple[DeviceMesh, tuple[Placement, ...]] | None = None
    """Of DTensor parameters."""

    @property
    def device_type(self) -> str:
        return self.owners[0].device.type

    def finish(self, *, zero_grad: bool) -> None:
        """Count the step, bring back what was stepped in a copy, and let autograd know what was written to."""
        torch._foreach_add_([state["step"] for state in self.states], 1)
        for tensor, copy in self.copies:
            tensor.copy_(copy)
        if self.sharding is not None:
            grads = [owner.grad for owner in self.owners if zero_grad and owner.grad is not None]
            increment_version([*self.wrappers, *grads])

    def over_shards(self, total: float) -> float:
        """The sum of ``total`` over the ranks that hold the other shards. All of them must reach this."""
        assert self.sharding is not None
        mesh, placements = self.sharding
        summed = torch.tensor(total, dtype=torch.float64, device=self.grads[0].device)
        for dim, placement in enumerate(placements):
            if not placement.is_replicate():
                dist.all_reduce(summed, group=mesh.get_group(dim))
        return summed.item()


def gather(
    params: list[Tensor],
    hyper: Hyper,
    state_of: Callable[[Tensor], dict[str, Any]],
    positions: Iterable[int],
    pending: Counter[Tensor],
) -> list[Batch]:
    """The batches of those parameters of one group that have a gradient, in the order of ``positions``.

    Args:
        pending: how often a parameter is in batches already that have not been stepped.

    Raises:
        TypeError: a parameter or gradient is sparse, complex, or of a dtype other than fp32 and bf16.
    """
    batches: dict[tuple[Any, ...], Batch] = {}
    for position in positions:
        param = params[position]
        grad = param.grad
        if grad is None:
            continue
        if param.dtype not in DTYPES or grad.dtype not in DTYPES or grad.layout is not torch.strided:
            raise TypeError(_refusal(param, grad))
        state = state_of(param)
        pending[param] += 1
        step = int(state["step"]) + pending[param]
        sharding = (param.device_mesh, param.placements) if isinstance(param, DTensor) else None
        kind = (step, param.dtype, grad.dtype, param.device, sharding)
        batch = batches.get(kind)
        if batch is None:
            batch = batches[kind] = Batch(hyper, step, sharding=sharding)
        batch.positions.append(position)
        _append(batch, param, grad, state)
    return list(batches.values())


def _append(batch: Batch, owner: Tensor, owned_grad: Tensor, state: dict[str, Any]) -> None:
    batch.owners.append(owner)
    batch.states.append(state)
    kept = [state[key] for key in _WRITTEN if key in state]
    batch.wrappers += [tensor for tensor in (owner, *kept) if isinstance(tensor, DTensor)]
    param, grad = _in_memory(batch, local(owner)), local(owned_grad).resolve_neg()
    if grad.stride() != param.stride() or owned_grad.is_neg():
        batch.relaid.append(owner)
        grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
    if "master" in state:
        batch.params.append(local(state["master"]))
        batch.extras.append(param)
    else:
        batch.params.append(param)
        if "low" in state:
            batch.extras.append(local(state["low"]))
    batch.grads.append(grad)
    batch.exp_avgs.append(_in_memory(batch, local(state["exp_avg"])))
    batch.exp_avg_sqs.append(_in_memory(batch, local(state["exp_avg_sq"])))
    if batch.hyper.amsgrad:
        batch.peaks.append(_in_memory(batch, local(state["max_exp_avg_sq"])))


def _in_memory(batch: Batch, tensor: Tensor) -> Tensor:
    """``tensor``, or the dense copy of it that is stepped in its place, where it has gaps or is negated lazily."""
    if not tensor.is_neg() and (tensor.is_contiguous() or is_dense(tensor)):
        return tensor
    copy = torch.empty_like(tensor).copy_(tensor)
    batch.copies.append((tensor, copy))
    return copy


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor without its history."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a piece of memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _refusal(param: Tensor, grad: Tensor) -> str:
    return (
        f"FusedAdamW: a parameter of shape {tuple(param.shape)} is {param.dtype}, its gradient {grad.dtype}, "
        f"{grad.layout}; it steps dense float32 and bfloat16: use torch.optim.AdamW, or SparseAdam for sparse gradients"
    )


def zero_grads(params: Iterable[Tensor]) -> None:
    """Make the gradients there are zero, in place where they can be written to."""
    for param in params:
        grad = param.grad
        if grad is not None and is_dense(local(grad)):
            grad.zero_()
        elif grad is not None:
            param.grad = torch.zeros_like(param, dtype=grad.dtype)  # expanded: one zero cannot be written to many
