"""The functional ops under `FusedAdamW`, as `torch.library` operators of the namespace ``thawline``.

Owns their schemas and fakes, so that they trace without a compiler; the kernels for CPU and CUDA come from
`build.load`. All tensors of one call are of one dtype per list and of one layout per parameter (see `batches`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thawline_kernels.reference import NORM_CHUNK

torch.library.define(
    "thawline::adamw_",
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] extras, Tensor scalars, int[] keys, bool accurate, bool zero_grad, "
    'str isa="") -> ()',
)
torch.library.define(
    "thawline::adamw_flat_",
    "(Tensor(a!) param, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!)? max_exp_avg_sq, "
    'Tensor(f!)? extra, Tensor scalars, int key, bool accurate, bool zero_grad, str isa="") -> ()',
)
torch.library.define("thawline::sums_of_squares_", '(Tensor[] grads, Tensor(a!) sums, str isa="") -> ()')
torch.library.define(
    "thawline::touch_", "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs) -> ()"
)


# The operators write into their arguments and return nothing: there is no result to fake, only what must agree.
def _check_adamw(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], *_: Any, **__: Any) -> None:
    torch._check(len(params) == len(grads) == len(exp_avgs), lambda: "thawline: the lists of tensors differ in length")


def _check_flat(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *_: Any, **__: Any) -> None:
    is_like = all(tensor.shape == param.shape for tensor in (grad, exp_avg, exp_avg_sq))
    torch._check(is_like, lambda: "thawline: the gradient or a moment differs from its parameter in shape")


def _step_flat(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    extra: Tensor | None,
    scalars: Tensor,
    key: int,
    accurate: bool,
    zero_grad: bool,
    isa: str = "",
) -> None:
    """One tensor, such as the flat partition of ZeRO: the list operator with lists of one."""
    peaks, extras = ([] if one is None else [one] for one in (max_exp_avg_sq, extra))
    streams = [param], [grad], [exp_avg], [exp_avg_sq], peaks, extras
    torch.ops.thawline.adamw_(*streams, scalars, [key], accurate, zero_grad, isa)


def _check_sums(grads: list[Tensor], sums: Tensor, isa: str = "") -> None:
    torch._check(sums.dtype is torch.float64, lambda: "thawline: sums must be float64")


torch.library.register_fake("thawline::adamw_", _check_adamw)
torch.library.register_fake("thawline::adamw_flat_", _check_flat)
for _key in ("CPU", "CUDA"):
    torch.library.impl("thawline::adamw_flat_", _key, _step_flat)
torch.library.register_fake("thawline::sums_of_squares_", _check_sums)
torch.library.register_fake("thawline::touch_", _check_adamw)


def sums_of_squares(grads: list[Tensor], isa: str = "") -> Tensor:
    """float64, one sum for each chunk of `NORM_CHUNK` elements of each dense gradient; all gradients on one device."""
    num_chunks = sum(-(-grad.numel() // NORM_CHUNK) for grad in grads)
    sums = torch.empty(num_chunks, dtype=torch.float64, device=grads[0].device)
    torch.ops.thawline.sums_of_squares_(grads, sums, isa)
    return sums
