"""The AdamW step in plain torch: what every other backend must equal, bit for bit.

Owns the order of operations and the place of each rounding. Refuses nothing and is in no hurry: the kernels are checked
against this file before they are timed. `FusedAdamW` calls it as its ``"torch"`` backend.

Algorithm 2 of Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (arXiv 1711.05101), its lines
numbered as there. The schedule multiplier of line 11 is part of the learning rate, as in `torch.optim.AdamW`.

Arithmetic is fp32, one IEEE rounding per written operation; the scalars are computed in double and rounded once. A
fused multiply-add stands where `torch.optim.AdamW(foreach=False)` has one (``lerp_`` and ``addcmul_``), so that the
moments equal its moments to the bit. The root is the correctly rounded one, which ``torch.sqrt`` in fp32 on CPU is not
(1 ULP off for one value in five); this is the only difference from torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from ctypes import c_float
from dataclasses import dataclass

import torch
from torch import Tensor

from thawline_kernels import formats

BLOCK = 1 << 16
"""Elements updated at once, so that the temporaries of `fma` stay in cache."""

NORM_CHUNK = 1 << 15
NORM_LANES = 32
"""Squares are summed in double per chunk of a tensor: element i to lane i % 32, then a tree over the lanes."""


@dataclass(frozen=True)
class Hyper:
    """The hyper-parameters of one parameter group, as Python numbers."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool = False
    accurate: bool = False
    """``numerics="accurate"``: the decay joins the update before it is added, lest a small one be rounded away."""
    amsgrad: bool = False


@dataclass(frozen=True)
class Scalars:
    """What the step multiplies by: computed in double, rounded once to fp32."""

    decay: float
    """1 - lr * weight_decay, or -lr * weight_decay when accurate."""
    weight1: float
    """1 - beta1, the weight of the gradient in the first moment."""
    beta2: float
    weight2: float
    """1 - beta2."""
    root_correction2: float
    """sqrt(1 - beta2 ** step)."""
    eps: float
    step_size: float
    """-lr / (1 - beta1 ** step)."""
    grad_scale: float
    """What the gradient is multiplied by first: clipping and unscaling."""


def fp32(value: float) -> float:
    """``value`` rounded to the nearest fp32."""
    return c_float(value).value


def scalars(hyper: Hyper, step: float, grad_scale: float = 1.0) -> Scalars:
    """The scalars of step number ``step`` (the first is 1)."""
    correction1 = 1 - hyper.beta1**step
    correction2 = 1 - hyper.beta2**step
    decayed = hyper.lr * hyper.weight_decay
    return Scalars(
        decay=fp32(-decayed if hyper.accurate else 1 - decayed),
        weight1=fp32(1 - hyper.beta1),
        beta2=fp32(hyper.beta2),
        weight2=fp32(1 - hyper.beta2),
        root_correction2=fp32(correction2**0.5),
        eps=fp32(hyper.eps),
        step_size=fp32(-(hyper.lr / correction1)),
        grad_scale=fp32(grad_scale),
    )


def packed(k: Scalars, hyper: Hyper) -> tuple[float, ...]:
    """``k`` as the nine fp32 that the kernels read (``Scalars`` in csrc/step.h)."""
    sign = -1.0 if hyper.maximize else 1.0
    return k.decay, k.weight1, k.beta2, k.weight2, k.root_correction2, k.eps, k.step_size, sign * k.grad_scale, 0.0


def pack(k: Scalars, hyper: Hyper) -> Tensor:
    """`packed` in a tensor."""
    return torch.tensor(packed(k, hyper), dtype=torch.float32, device="cpu")


def fma(a: Tensor, b: Tensor | float, c: Tensor) -> Tensor:
    """a * b + c of fp32 tensors with one rounding, on any device.

    The product is exact in double. The sum is rounded to odd there, which makes the second rounding, to fp32, the only
    one that counts (Boldo and Melquiond, "Emulation of FMA and Correctly Rounded Sums", 2008, theorem 2).
    """
    product = a.double() * (b.double() if isinstance(b, Tensor) else b)
    addend = c.double()
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)  # Knuth's two-sum: total + error is exact
    bits = total.view(torch.int64)
    towards_error = torch.where((error > 0) == (total > 0), 1, -1)
    is_inexact_and_even = (error.abs() > 0) & (bits & 1 == 0)  # NaN > 0 is false: Inf and NaN stay as they are
    return torch.where(is_inexact_and_even, bits + towards_error, bits).view(torch.float64).float()


def root(value: Tensor) -> Tensor:
    """The correctly rounded fp32 square root: double has the bits to make its second rounding harmless."""
    return value.double().sqrt().float()


def update_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    hyper: Hyper,
    k: Scalars,
) -> None:
    """One AdamW step in place on fp32 tensors of one shape, of any strides.

    Args:
        grad: left as it is.
        max_exp_avg_sq: the running maximum of ``exp_avg_sq`` (AMSGrad), or None.
    """
    # Line 6: the gradient of the loss alone; weight decay is not added to it.
    grad = grad * k.grad_scale
    if hyper.maximize:
        grad = -grad
    # Line 12, second term: theta <- theta - eta * lambda * theta.
    if not hyper.accurate:
        param.mul_(k.decay)
    # Line 7: m <- beta1 * m + (1 - beta1) * g, written as an interpolation from its nearer end.
    if abs(k.weight1) < 0.5:
        exp_avg.copy_(fma(grad - exp_avg, k.weight1, exp_avg))
    else:
        exp_avg.copy_(fma(grad - exp_avg, fp32(k.weight1 - 1), grad))
    # Line 8: v <- beta2 * v + (1 - beta2) * g^2.
    exp_avg_sq.copy_(fma(grad * k.weight2, grad, exp_avg_sq * k.beta2))
    # AMSGrad (Reddi et al., "On the Convergence of Adam and Beyond", ICLR 2018, algorithm 2); a NaN stays one.
    if max_exp_avg_sq is not None:
        exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    # Lines 9, 10 and 12: theta <- theta - alpha * m_hat / (sqrt(v_hat) + epsilon).
    denominator = root(exp_avg_sq) / k.root_correction2 + k.eps
    change = exp_avg * k.step_size / denominator
    param.add_(fma(param, k.decay, change) if hyper.accurate else change)


def adamw_(
    param: Tensor,
    extra: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    hyper: Hyper,
    k: Scalars,
    key: int = 0,
) -> None:
    """`update_` for tensors in any of the stored formats, block by block.

    Args:
        param: fp32; or bf16, which is widened, stepped and rounded to nearest even; see ``extra``.
        extra: int16 low halves beside a bf16 ``param`` (see `formats`), or the bf16 copy of an fp32 master, or None.
        grad: fp32 or bf16.
        exp_avg, exp_avg_sq: fp32; or bf16, of which the second is rounded stochastically with ``key``.
    """
    streams = {"p": param, "x": extra, "g": grad, "m": exp_avg, "v": exp_avg_sq, "peak": max_exp_avg_sq}
    start = 0
    for block in _blocks({name: tensor for name, tensor in streams.items() if tensor is not None}):
        p, x = block["p"], block.get("x")
        wide = formats.join16(p, x) if x is not None and x.dtype is torch.int16 else p.float()
        m, v = block["m"].float(), block["v"].float()
        update_(wide, block["g"].float(), m, v, block.get("peak"), hyper, k)
        formats.store_param(wide, p, x)
        if m is not block["m"]:
            block["m"].copy_(m)
            block["v"].copy_(formats.stochastic_bf16(v, formats.random16(v, start, key)))
        start += p.numel()


def _blocks(streams: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The streams cut at the same elements, `BLOCK` of them at a time, in the order of their (common) memory."""
    flat = {name: tensor.as_strided((tensor.numel(),), (1,)) for name, tensor in streams.items()}
    for start in range(0, flat["p"].numel(), BLOCK):
        yield {name: tensor[start : start + BLOCK] for name, tensor in flat.items()}


def sums_of_squares(grad: Tensor) -> list[float]:
    """The sum of squares of each chunk of `NORM_CHUNK` elements of a dense tensor, taken in the order of its memory.

    Squares of fp32 are exact in double; each lane adds its own in order, then the lanes are halved to one.
    """
    flat = grad.detach().as_strided((grad.numel(),), (1,))
    whole = flat.numel() // NORM_CHUNK * NORM_CHUNK
    sums: list[float] = []
    for start in range(0, whole, 64 * NORM_CHUNK):
        sums += _chunk_sums(flat[start : min(start + 64 * NORM_CHUNK, whole)].view(-1, NORM_CHUNK))
    return sums + _chunk_sums(flat[whole:].view(1, -1))


def _chunk_sums(chunks: Tensor) -> list[float]:
    """Sums of squares of the rows of ``chunks``, [C, N] with N <= `NORM_CHUNK`."""
    if not chunks.numel():
        return []
    padded = torch.nn.functional.pad(chunks.double(), (0, -chunks.shape[1] % NORM_LANES))
    lanes = torch.zeros(chunks.shape[0], NORM_LANES, dtype=torch.float64, device=chunks.device)
    for row in padded.square().view(chunks.shape[0], -1, NORM_LANES).unbind(1):
        lanes += row
    while lanes.shape[1] > 1:
        lower, upper = lanes.chunk(2, dim=1)
        lanes = lower + upper
    return lanes.view(-1).tolist()


def total(sums: list[float]) -> float:
    """The exact sum, rounded once: neither their order nor the number of threads matters. Inf and NaN stay."""
    return math.fsum(sums)
