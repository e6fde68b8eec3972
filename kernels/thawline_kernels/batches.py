"""What one call of a kernel gets: the tensors of one group that share a step count, in one layout.

Owns the state's creation and its shapes, None gradients, DTensor shards and mismatched strides. Refuses sparse, complex and
float64 tensors. `FusedAdamW.step` calls it; nothing here outlives the step, because DeepSpeed swaps tensors between steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from thawline_kernels.reference import Hyper

DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Batch:
    """Parameters of one group with the same number of steps taken; lists of equal length."""

    hyper: Hyper
    step: float
    """Number of the step about to be taken; the first is 1."""
    states: list[dict[str, Any]] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)
    """Empty without amsgrad."""

    def count_step(self) -> None:
        """Give the parameters a new step count; never change one in place: a loaded state dict may share it."""
        counted = torch.tensor(self.step, dtype=torch.float32)
        for state in self.states:
            state["step"] = counted


def gather(group: dict[str, Any], states: dict[Tensor, dict[str, Any]]) -> list[Batch]:
    """The batches of one parameter group, with state made for parameters that meet their first gradient.

    Raises:
        TypeError: a parameter or gradient is sparse, complex, or of a dtype other than fp32 and bf16.
    """
    hyper = _hyper(group)
    batches: dict[float, Batch] = {}
    steps: dict[int, float] = {}  # the tensors live on in `states` while this runs, so their ids are unique
    for param in group["params"]:
        grad = param.grad
        if grad is None:
            continue
        _refuse(param, grad)
        state = states[param]
        if not state:
            _start(state, param, group["amsgrad"])
        counter = state["step"]
        if id(counter) not in steps:
            steps[id(counter)] = float(counter) + 1
        step = steps[id(counter)]
        batch = batches.setdefault(step, Batch(hyper, step)) if step not in batches else batches[step]
        batch.states.append(state)
        batch.params.append(local(param))
        batch.grads.append(local(grad))
        batch.exp_avgs.append(local(state["exp_avg"]))
        batch.exp_avg_sqs.append(local(state["exp_avg_sq"]))
        if group["amsgrad"]:
            batch.max_exp_avg_sqs.append(local(state["max_exp_avg_sq"]))
    return list(batches.values())


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def dense(tensor: Tensor) -> Tensor:
    """``tensor`` itself when its elements fill their memory, else a contiguous copy (expanded and strided gradients)."""
    return tensor if tensor.is_contiguous() or is_dense(tensor) else tensor.contiguous()


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a piece of memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _hyper(group: dict[str, Any]) -> Hyper:
    beta1, beta2 = group["betas"]
    return Hyper(
        float(group["lr"]), float(beta1), float(beta2), group["eps"], group["weight_decay"], maximize=group["maximize"]
    )


def _refuse(param: Tensor, grad: Tensor) -> None:
    for what, tensor in (("parameter", param), ("gradient", grad)):
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES:
            raise TypeError(
                f"FusedAdamW: a {what} of shape {tuple(tensor.shape)} is {tensor.dtype}, {tensor.layout}; "
                "it steps dense float32 and bfloat16 tensors: use torch.optim.AdamW, or SparseAdam for sparse gradients"
            )


def _start(state: dict[str, Any], param: Tensor, amsgrad: bool) -> None:
    """The keys and shapes of `torch.optim.AdamW`; the moments of a bf16 parameter are fp32."""
    state["step"] = torch.tensor(0.0)
    for key in ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if amsgrad else ()):
        state[key] = torch.zeros_like(param, dtype=torch.float32, memory_format=torch.preserve_format)


def gradients(batches: list[Batch]) -> Iterator[Tensor]:
    """All gradients, in the order of the groups."""
    for batch in batches:
        yield from batch.grads
