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
torch.library.define("thawline::sums_of_squares_", '(Tensor[] grads, Tensor(a!) sums, str isa="") -> ()')
torch.library.define(
    "thawline::touch_", "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs) -> ()"
)


# The operators write into their arguments and return nothing: there is no result to fake, only what must agree.
def _check_adamw(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], *_: Any, **__: Any) -> None:
    torch._check(len(params) == len(grads) == len(exp_avgs), lambda: "thawline: the lists of tensors differ in length")


def _check_sums(grads: list[Tensor], sums: Tensor, isa: str = "") -> None:
    torch._check(sums.dtype is torch.float64, lambda: "thawline: sums must be float64")


torch.library.register_fake("thawline::adamw_", _check_adamw)
torch.library.register_fake("thawline::sums_of_squares_", _check_sums)
torch.library.register_fake("thawline::touch_", _check_adamw)


def sums_of_squares(grads: list[Tensor], isa: str = "") -> Tensor:
    """float64, one sum for each chunk of `NORM_CHUNK` elements of each dense gradient; all gradients on one device."""
    num_chunks = sum(-(-grad.numel() // NORM_CHUNK) for grad in grads)
    sums = torch.empty(num_chunks, dtype=torch.float64, device=grads[0].device)
    torch.ops.thawline.sums_of_squares_(grads, sums, isa)
    return sums
