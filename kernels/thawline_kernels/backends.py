"""Who takes the step: the compiled kernels, or the reference in torch. Equal to the bit.

Owns the choice behind ``backend="auto"``. Refuses to fall back where a compiled backend was named.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Protocol

import torch
from torch import Tensor

from thawline_kernels import build, ops, reference
from thawline_kernels.batches import Batch

log = logging.getLogger("thawline_kernels")


class Backend(Protocol):
    """Takes a step for the tensors of a batch, and measures gradients."""

    def update(self, batch: Batch, k: reference.Scalars, *, zero_grad: bool) -> None:
        """Step the parameters and moments in place; zero the gradients with ``zero_grad``."""

    def sums_of_squares(self, grads: list[Tensor]) -> list[float]:
        """As `reference.sums_of_squares`, of all of ``grads``."""


class TorchBackend:
    """The reference, parameter by parameter."""

    def update(self, batch: Batch, k: reference.Scalars, *, zero_grad: bool) -> None:
        for i, param in enumerate(batch.params):
            extra, peak = (tensors[i] if tensors else None for tensors in (batch.extras, batch.peaks))
            moments = batch.exp_avgs[i], batch.exp_avg_sqs[i], peak
            key = batch.keys[i] if batch.keys else 0
            reference.adamw_(param, extra, batch.grads[i], *moments, batch.hyper, k, key)
            if zero_grad:
                batch.grads[i].zero_()

    def sums_of_squares(self, grads: list[Tensor]) -> list[float]:
        return [total for grad in grads for total in reference.sums_of_squares(grad)]


class CompiledBackend:
    """The kernels of ``build.load``: one call for the whole batch.

    Args:
        isa: of "cpu": scalar, avx2 or avx512; empty takes the best that this CPU has.

    Raises:
        ValueError: this CPU has no ``isa``. It is asked before any operator is: theirs would be a C++ exception, which
            has to find its way through torch.
    """

    def __init__(self, target: str, isa: str = "") -> None:
        library = build.load(target)
        if isa and not (target == "cpu" and ctypes.CDLL(str(library)).thawline_has(isa.encode())):
            raise ValueError(f"the compiled {target} step: no {isa} here; leave isa empty to take the best there is")
        self.isa = isa

    def update(self, batch: Batch, k: reference.Scalars, *, zero_grad: bool) -> None:
        scalars = reference.pack(k, batch.hyper)  # on the host, also for CUDA: a copy would wait for the device
        moments = batch.exp_avgs, batch.exp_avg_sqs, batch.peaks
        options = scalars, batch.keys, batch.hyper.accurate, zero_grad, self.isa
        torch.ops.thawline.adamw_(batch.params, batch.grads, *moments, batch.extras, *options)

    def sums_of_squares(self, grads: list[Tensor]) -> list[float]:
        sums: list[float] = ops.sums_of_squares(grads, self.isa).tolist() if grads else []
        return sums


@functools.cache
def choose(name: str, device_type: str) -> Backend:
    """The backend called ``name`` for tensors on ``device_type``.

    Raises:
        build.BuildError: a compiled backend was named and cannot be built.
        ValueError: a compiled backend was named for another kind of device.
    """
    if name == "torch" or (name == "auto" and device_type not in ("cpu", "cuda")):
        return TorchBackend()
    if name not in ("auto", device_type):
        raise ValueError(
            f"FusedAdamW(backend={name!r}): the parameters are on {device_type}; take 'auto' or {device_type!r}"
        )
    try:
        return CompiledBackend(device_type)
    except build.BuildError as error:
        if name != "auto":
            raise
        log.warning("AdamW steps with the reference in torch, which gives the same bits more slowly: %s", error)
        return TorchBackend()


def is_compiled(name: str, device_type: str) -> bool:
    """Whether `choose` takes the kernels."""
    return isinstance(choose(name, device_type), CompiledBackend)
